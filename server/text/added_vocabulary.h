// The "added_tokens" of tokenizer.json. They are found in the text as they are written, before BPE
// sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/text/bpe_model.h"
#include "server/text/byte_range.h"
#include "server/text/normalizer.h"

namespace apb::text {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

class AddedVocabulary {
 public:
  AddedVocabulary() = default;
  // `json` may be null. Errors name the entry.
  static absl::StatusOr<AddedVocabulary> FromJson(const nlohmann::json& json, const BpeModel& model,
                                                  const Normalizer& normalizer);

  struct Match {
    ByteRange range;  // includes the blanks that lstrip and rstrip swallow
    int32_t id = 0;
  };
  // The added tokens in `text`: leftmost first, and the longest of those that begin at the same
  // byte. `normalized` chooses the tokens that match normalized text or those that match raw text.
  // For each special token, `special_allowed` decides, given the range of the token's own
  // characters.
  std::vector<Match> Find(std::string_view text, bool normalized,
                          absl::FunctionRef<bool(const ByteRange&)> special_allowed) const;

  // Null if the id is no added token.
  const AddedToken* FindId(int32_t id) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  // A trie over bytes. Edges are keyed by node and byte.
  struct Trie {
    absl::flat_hash_map<uint64_t, uint32_t> edges;
    std::vector<int32_t> token_index{-1};  // per node; -1: no token ends here
    std::array<bool, 256> first{};

    bool empty() const { return token_index.size() == 1; }
    void Insert(std::string_view key, int32_t index);
    // The longest key at the beginning of `text`: its token's index and its length in bytes. The
    // index is -1 without a match.
    std::pair<int32_t, size_t> Longest(std::string_view text) const;
  };

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<int32_t, size_t> by_id_;
  Trie raw_trie_, normalized_trie_;
};

}  // namespace apb::text
