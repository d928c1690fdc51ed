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

// The printable character that stands for a byte in byte-level vocabularies, as UTF-8.
const std::string& ByteLevelCharacter(uint8_t byte);
// The bytes that a token of such a vocabulary stands for; the token itself when it has other
// characters.
std::string ByteLevelBytes(std::string_view token);

// Ids above this are refused when loading.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

struct WordToken {
  int32_t id = 0;
  uint32_t begin = 0;  // byte of the word at which it begins
};

class BpeModel {
 public:
  BpeModel() = default;
  // `maps_bytes`: words are given as plain text and the vocabulary is spelled with
  // ByteLevelCharacter.
  static absl::StatusOr<BpeModel> FromJson(const nlohmann::json& json, bool maps_bytes);

  // Appends the tokens of one word. O(n log n).
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
  absl::flat_hash_map<uint64_t, Merge> merges_;  // key: left id, right id
  bool maps_bytes_ = false;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  // No merge crosses from another character to U+2581, so words can be cut there.
  bool blank_is_border_ = false;
  int32_t unk_id_ = -1;
  std::array<int32_t, 256>
      byte_ids_{};  // of ByteLevelCharacter or of <0xNN>; -1: not in the vocabulary
};

}  // namespace apb::text
