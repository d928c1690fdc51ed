// A byte trie is walked from every place at which a token can begin.
#include "server/text/added_vocabulary.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

// The trie walk may cost up to this many steps for each byte of text.
constexpr size_t kMaxAddedTokenBytes = 4096;

absl::StatusOr<AddedToken> ReadToken(const nlohmann::json& json, const std::string& where) {
  AddedToken token;
  base::JsonReader reader(json, where + ".");
  token.content = reader.String("content");
  token.id = static_cast<int32_t>(reader.Integer("id", 0, kMaxTokenId));
  token.special = reader.Boolean("special", false);
  token.single_word = reader.Boolean("single_word", false);
  token.lstrip = reader.Boolean("lstrip", false);
  token.rstrip = reader.Boolean("rstrip", false);
  token.normalized = reader.Boolean("normalized", !token.special);
  APB_RETURN_IF_ERROR(reader.status());
  if (token.content.size() > kMaxAddedTokenBytes)
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", token.content.size(),
                                                   " bytes, the limit is ", kMaxAddedTokenBytes));
  return token;
}

bool IsWholeWord(std::string_view text, const ByteRange& range) {
  size_t pos = range.begin;
  if (pos > 0 && IsWordCharacter(PreviousCodePoint(text, pos))) return false;
  pos = range.end;
  return pos == text.size() || !IsWordCharacter(NextCodePoint(text, pos));
}

size_t SkipBlanksBefore(std::string_view text, size_t pos) {
  while (pos > 0) {
    size_t previous = pos;
    if (!IsWhitespace(PreviousCodePoint(text, previous))) break;
    pos = previous;
  }
  return pos;
}

size_t SkipBlanksAfter(std::string_view text, size_t pos) {
  while (pos < text.size()) {
    size_t next = pos;
    if (!IsWhitespace(NextCodePoint(text, next))) break;
    pos = next;
  }
  return pos;
}

}  // namespace

void AddedVocabulary::Trie::Insert(std::string_view key, int32_t index) {
  uint32_t node = 0;
  first[static_cast<uint8_t>(key[0])] = true;
  for (const char c : key) {
    auto [it, is_new] = edges.try_emplace(uint64_t{node} << 8 | static_cast<uint8_t>(c),
                                          static_cast<uint32_t>(token_index.size()));
    if (is_new) token_index.push_back(-1);
    node = it->second;
  }
  token_index[node] = index;
}

std::pair<int32_t, size_t> AddedVocabulary::Trie::Longest(std::string_view text) const {
  std::pair<int32_t, size_t> best{-1, 0};
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    auto it = edges.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (it == edges.end()) break;
    node = it->second;
    if (token_index[node] >= 0) best = {token_index[node], i + 1};
  }
  return best;
}

absl::StatusOr<AddedVocabulary> AddedVocabulary::FromJson(const nlohmann::json& json,
                                                          const BpeModel& model,
                                                          const Normalizer& normalizer) {
  AddedVocabulary made;
  if (json.is_null()) return made;
  if (!json.is_array()) return absl::InvalidArgumentError("added_tokens: must be an array");
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string where = absl::StrCat("added_tokens[", i, "]");
    APB_ASSIGN_OR_RETURN(AddedToken token, ReadToken(json[i], where));
    if (token.content.empty()) continue;
    if (const auto id = model.TokenId(token.content); id && *id != token.id)
      return absl::InvalidArgumentError(absl::StrCat(where, ": \"", token.content, "\" has id ",
                                                     token.id, " here and ", *id,
                                                     " in the vocabulary"));
    const auto index = static_cast<int32_t>(made.tokens_.size());
    if (!made.by_id_.emplace(token.id, made.tokens_.size()).second)
      return absl::InvalidArgumentError(absl::StrCat(where, ": id ", token.id, " is used twice"));
    if (token.normalized) {
      APB_ASSIGN_OR_RETURN(const TracedText text, normalizer.Apply({token.content}, true));
      if (!text.view().text.empty()) made.normalized_trie_.Insert(text.view().text, index);
    } else {
      made.raw_trie_.Insert(token.content, index);
    }
    made.tokens_.push_back(std::move(token));
  }
  return made;
}

const AddedToken* AddedVocabulary::FindId(int32_t id) const {
  auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

std::vector<AddedVocabulary::Match> AddedVocabulary::Find(
    std::string_view text, bool normalized,
    absl::FunctionRef<bool(const ByteRange&)> special_allowed) const {
  const Trie& trie = normalized ? normalized_trie_ : raw_trie_;
  std::vector<Match> matches;
  if (trie.empty()) return matches;
  size_t done = 0;  // end of the last match
  for (size_t pos = 0; pos < text.size();) {
    if (!trie.first[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    const auto [index, length] = trie.Longest(text.substr(pos));
    if (index < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[index];
    ByteRange range{pos, pos + length};
    // A refused token hides the tokens within it, as in the `tokenizers` package.
    pos = range.end;
    if (token.special && !special_allowed(range)) continue;
    if (token.single_word && !IsWholeWord(text, range)) continue;
    if (range.begin < done) continue;  // within the blanks of the previous token
    if (token.lstrip) range.begin = std::max(SkipBlanksBefore(text, range.begin), done);
    if (token.rstrip) range.end = SkipBlanksAfter(text, range.end);
    matches.push_back({range, token.id});
    done = range.end;
  }
  return matches;
}

}  // namespace apb::text
