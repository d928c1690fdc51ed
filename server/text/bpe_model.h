// Byte-pair encoding of single words: the "model" of tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/text/byte_range.h"
#include "server/text/string_map.h"

namespace apb::text {

// The printable character, as UTF-8, that stands for a byte in byte-level vocabularies.
const std::string& ByteLevelCharacter(uint8_t byte);
// The bytes for which a token of such a vocabulary stands. A token with any other character is
// returned unchanged.
std::string ByteLevelBytes(std::string_view token);

// Loading refuses ids above this.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

struct WordToken {
  int32_t id = 0;
  uint32_t begin = 0;  // the byte of the word at which the token begins
};

class BpeModel {
 public:
  BpeModel() = default;
  // `maps_bytes`: the vocabulary is spelled with ByteLevelCharacter, while words are given as plain
  // text. kUnimplemented for a model that is not supported, kInvalidArgument for a broken one.
  static absl::StatusOr<BpeModel> FromJson(const nlohmann::json& json, bool maps_bytes);

  // Appends the tokens of one word. Takes O(n log n) time.
  void Encode(std::string_view word, std::vector<WordToken>& tokens) const;

  std::optional<int32_t> TokenId(std::string_view token) const;
  const StringMap<int32_t>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };

  absl::Status ReadVocabulary(const nlohmann::json& json);
  absl::Status ReadMerges(const nlohmann::json& json);
  absl::Status AddMerge(const std::string& left, const std::string& right, int32_t rank);
  void FindBlankBorders();
  void EncodePart(std::string_view word, ByteRange part, std::vector<WordToken>& tokens) const;
  void Symbols(std::string_view word, ByteRange part, std::vector<WordToken>& symbols) const;
  void MergeShort(std::vector<WordToken>& symbols) const;
  void MergeLong(std::vector<WordToken>& symbols) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  StringMap<int32_t> vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // key: left id and right id
  bool maps_bytes_ = false;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  // No merge crosses a border between another character and U+2581, so words can be cut there.
  bool blank_is_border_ = false;
  int32_t unk_id_ = -1;
  // By byte: the id of its ByteLevelCharacter or of its <0xNN>; -1: not in the vocabulary.
  std::array<int32_t, 256> byte_ids_{};
};

}  // namespace apb::text
