// Merges are applied in the order of their rank, and leftmost first among equals. Short words are
// rescanned after each merge; long ones use a heap of candidate pairs over a linked list.
#include "server/text/bpe_model.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

constexpr std::string_view kBlank = "\u2581";
constexpr size_t kShortWord = 24;  // symbols

struct ByteLevelTable {
  std::array<std::string, 256> characters;
  absl::flat_hash_map<char32_t, uint8_t> bytes;

  ByteLevelTable() {
    // Printable Latin-1 characters stand for themselves; the other bytes stand for U+0100 and up,
    // in their order.
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(byte) : next++;
      AppendUtf8(c, characters[byte]);
      bytes[c] = static_cast<uint8_t>(byte);
    }
  }
};

const ByteLevelTable& Table() {
  static const ByteLevelTable* const table = new ByteLevelTable();
  return *table;
}

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

const std::string& ByteLevelCharacter(uint8_t byte) { return Table().characters[byte]; }

std::string ByteLevelBytes(std::string_view token) {
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    auto it = Table().bytes.find(NextCodePoint(token, pos));
    if (it == Table().bytes.end()) return std::string(token);
    bytes += static_cast<char>(it->second);
  }
  return bytes;
}

absl::StatusOr<BpeModel> BpeModel::FromJson(const nlohmann::json& json, bool maps_bytes) {
  BpeModel model;
  model.maps_bytes_ = maps_bytes;
  base::JsonReader reader(json, "model.");
  const std::string type = reader.String("type", "BPE");
  if (type != "BPE")
    return absl::UnimplementedError(absl::StrCat("model type \"", type, "\" is not supported"));
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!reader.String(name, "").empty())
      return absl::UnimplementedError(absl::StrCat("model: ", name, " is not supported"));
  }
  if (auto dropout = json.find("dropout");
      dropout != json.end() && !dropout->is_null() && *dropout != 0)
    return absl::UnimplementedError("model: dropout is not supported");
  model.byte_fallback_ = reader.Boolean("byte_fallback", false);
  model.fuse_unk_ = reader.Boolean("fuse_unk", false);
  model.ignore_merges_ = reader.Boolean("ignore_merges", false);
  const std::string unk = reader.String("unk_token", "");
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(model.ReadVocabulary(json));
  APB_RETURN_IF_ERROR(model.ReadMerges(json));
  if (!unk.empty()) {
    const auto id = model.TokenId(unk);
    if (!id)
      return absl::InvalidArgumentError(
          absl::StrCat("model: unk_token \"", unk, "\" is not in the vocabulary"));
    model.unk_id_ = *id;
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto id =
        model.TokenId(maps_bytes ? ByteLevelCharacter(byte) : absl::StrFormat("<0x%02X>", byte));
    model.byte_ids_[byte] = id.value_or(-1);
  }
  model.FindBlankBorders();
  return model;
}

absl::Status BpeModel::ReadVocabulary(const nlohmann::json& json) {
  auto vocabulary = json.find("vocab");
  if (vocabulary == json.end() || !vocabulary->is_object())
    return absl::InvalidArgumentError("model: field \"vocab\" must be an object");
  vocabulary_.reserve(vocabulary->size());
  for (const auto& [token, id] : vocabulary->items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId))
      return absl::InvalidArgumentError(absl::StrCat(
          "model.vocab: the id of \"", token, "\" must be an integer from 0 to ", kMaxTokenId));
    vocabulary_[token] = static_cast<int32_t>(id.get<uint64_t>());
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(const nlohmann::json& json) {
  base::JsonReader reader(json, "model.");
  const nlohmann::json* list = reader.Array("merges");
  APB_RETURN_IF_ERROR(reader.status());
  merges_.reserve(list->size());
  int32_t rank = 0;
  for (const nlohmann::json& merge : *list) {
    if (merge.is_string()) {  // files from before 2024
      const std::vector<std::string> parts =
          absl::StrSplit(merge.get_ref<const std::string&>(), ' ');
      if (parts.size() != 2)
        return absl::InvalidArgumentError(
            absl::StrCat("model.merges[", rank, "] is not two tokens"));
      APB_RETURN_IF_ERROR(AddMerge(parts[0], parts[1], rank));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      APB_RETURN_IF_ERROR(AddMerge(merge[0].get_ref<const std::string&>(),
                                   merge[1].get_ref<const std::string&>(), rank));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("model.merges[", rank, "] is not two tokens"));
    }
    ++rank;
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerge(const std::string& left, const std::string& right, int32_t rank) {
  const auto left_id = TokenId(left), right_id = TokenId(right), id = TokenId(left + right);
  if (!left_id || !right_id || !id)
    return absl::InvalidArgumentError(absl::StrCat("model.merges[", rank, "]: \"",
                                                   !left_id    ? left
                                                   : !right_id ? right
                                                               : left + right,
                                                   "\" is not in the vocabulary"));
  merges_[PairKey(*left_id, *right_id)] = {rank, *id};
  return absl::OkStatus();
}

void BpeModel::FindBlankBorders() {
  blank_is_border_ = !maps_bytes_ && !ignore_merges_ && TokenId(kBlank).has_value();
  if (!blank_is_border_) return;
  std::vector<bool> made(kMaxTokenId + 1);
  for (const auto& [pair, merge] : merges_) made[merge.id] = true;
  for (const auto& [token, id] : vocabulary_) {
    if (!made[id]) continue;
    for (size_t pos = token.find(kBlank, 1); pos != std::string::npos;
         pos = token.find(kBlank, pos + 1)) {
      if (std::string_view(token).substr(0, pos).ends_with(kBlank)) continue;
      blank_is_border_ = false;
      return;
    }
  }
}

std::optional<int32_t> BpeModel::TokenId(std::string_view token) const {
  auto it = vocabulary_.find(token);
  if (it == vocabulary_.end()) return std::nullopt;
  return it->second;
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BpeModel::Encode(std::string_view word, std::vector<WordToken>& tokens) const {
  size_t begin = 0;
  if (blank_is_border_) {
    for (size_t pos = word.find(kBlank); pos != std::string_view::npos;
         pos = word.find(kBlank, pos + kBlank.size())) {
      if (pos > begin && !word.substr(begin, pos - begin).ends_with(kBlank)) {
        EncodePart(word, {begin, pos}, tokens);
        begin = pos;
      }
    }
  }
  EncodePart(word, {begin, word.size()}, tokens);
}

void BpeModel::EncodePart(std::string_view word, ByteRange part,
                          std::vector<WordToken>& tokens) const {
  if (ignore_merges_) {
    const std::string_view whole = word.substr(part.begin, part.end - part.begin);
    std::string spelled;
    if (maps_bytes_) {
      for (const char c : whole) spelled += ByteLevelCharacter(static_cast<uint8_t>(c));
    }
    if (const auto id = TokenId(maps_bytes_ ? std::string_view(spelled) : whole)) {
      tokens.push_back({*id, static_cast<uint32_t>(part.begin)});
      return;
    }
  }
  std::vector<WordToken> symbols;
  Symbols(word, part, symbols);
  if (symbols.size() <= kShortWord) {
    MergeShort(symbols);
  } else {
    MergeLong(symbols);
  }
  tokens.insert(tokens.end(), symbols.begin(), symbols.end());
}

void BpeModel::Symbols(std::string_view word, ByteRange part,
                       std::vector<WordToken>& symbols) const {
  std::optional<uint32_t> pending_unk;  // the byte at which it begins
  auto flush_unk = [&] {
    if (!pending_unk.has_value()) return;
    // Byte tokens overtake the unknown token in the `tokenizers` package too. Offsets must ascend
    // nevertheless.
    if (!symbols.empty()) pending_unk = std::max(*pending_unk, symbols.back().begin);
    symbols.push_back({unk_id_, *pending_unk});
    pending_unk.reset();
  };
  for (size_t pos = part.begin; pos < part.end;) {
    const auto begin = static_cast<uint32_t>(pos);
    int32_t id = -1;
    if (maps_bytes_) {
      id = byte_ids_[static_cast<uint8_t>(word[pos++])];
    } else {
      NextCodePoint(word, pos);
      id = TokenId(word.substr(begin, pos - begin)).value_or(-1);
    }
    if (id >= 0) {
      flush_unk();
      symbols.push_back({id, begin});
      continue;
    }
    const std::string_view character = word.substr(begin, pos - begin);
    if (!maps_bytes_ && byte_fallback_ &&
        std::all_of(character.begin(), character.end(),
                    [this](char c) { return byte_ids_[static_cast<uint8_t>(c)] >= 0; })) {
      for (uint32_t i = 0; i < character.size(); ++i)
        symbols.push_back({byte_ids_[static_cast<uint8_t>(character[i])], begin + i});
    } else if (unk_id_ >= 0) {
      if (!fuse_unk_) flush_unk();
      if (!pending_unk.has_value()) pending_unk = begin;
    }
  }
  flush_unk();
}

void BpeModel::MergeShort(std::vector<WordToken>& symbols) const {
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  std::array<Merge, kShortWord> candidates;
  auto candidate = [&](size_t i) {
    const Merge* merge =
        i + 1 < symbols.size() ? FindMerge(symbols[i].id, symbols[i + 1].id) : nullptr;
    return merge == nullptr ? Merge{kNone, -1} : *merge;
  };
  for (size_t i = 0; i < symbols.size(); ++i) candidates[i] = candidate(i);
  while (symbols.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < symbols.size(); ++i) {
      if (candidates[i].rank < candidates[best].rank) best = i;
    }
    if (candidates[best].rank == kNone) return;
    symbols[best].id = candidates[best].id;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(candidates.begin() + best + 2, candidates.begin() + symbols.size() + 1,
              candidates.begin() + best + 1);
    candidates[best] = candidate(best);
    if (best > 0) candidates[best - 1] = candidate(best - 1);
  }
}

void BpeModel::MergeLong(std::vector<WordToken>& symbols) const {
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> previous(count), next(count);
  for (int32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1 < count ? i + 1 : -1;
  }
  // Rank, place of the left symbol, new id.
  using Candidate = std::tuple<int32_t, int32_t, int32_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  auto offer = [&](int32_t left) {
    if (left < 0 || next[left] < 0) return;
    if (const Merge* merge = FindMerge(symbols[left].id, symbols[next[left]].id))
      queue.emplace(merge->rank, left, merge->id);
  };
  for (int32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!queue.empty()) {
    const auto [rank, left, id] = queue.top();
    queue.pop();
    if (symbols[left].id < 0 || next[left] < 0) continue;
    const int32_t right = next[left];
    // The pair may have changed since it was offered.
    const Merge* merge = FindMerge(symbols[left].id, symbols[right].id);
    if (merge == nullptr || merge->id != id) continue;
    symbols[left].id = id;
    symbols[right].id = -1;
    next[left] = next[right];
    if (next[left] >= 0) previous[next[left]] = left;
    offer(previous[left]);
    offer(left);
  }
  std::erase_if(symbols, [](const WordToken& symbol) { return symbol.id < 0; });
}

}  // namespace apb::text
