// Encoding: added tokens cut the text; the rest is normalized, cut into words, and encoded word by
// word.
#include "server/text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/post_processor.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 30;

// A JSON null if the field is absent.
const nlohmann::json& FieldOrNull(const nlohmann::json& object, const char* name) {
  static const nlohmann::json* const null = new nlohmann::json();
  auto it = object.find(name);
  return it == object.end() ? *null : *it;
}

bool Overlaps(std::span<const ByteRange> ascending, const ByteRange& range) {
  auto it = std::partition_point(ascending.begin(), ascending.end(),
                                 [&](const ByteRange& plain) { return plain.end <= range.begin; });
  return it != ascending.end() && it->begin < range.end;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& tokenizer_json_path) {
  APB_ASSIGN_OR_RETURN(const std::string json, base::ReadFile(tokenizer_json_path, kMaxFileBytes));
  const auto config_path =
      std::filesystem::path(tokenizer_json_path).parent_path() / "tokenizer_config.json";
  auto config = base::ReadFile(config_path.string(), kMaxFileBytes);
  if (!config.ok() && !absl::IsNotFound(config.status())) return config.status();
  auto made = FromJson(json, config.ok() ? *config : "");
  if (!made.ok())
    return absl::Status(made.status().code(),
                        absl::StrCat(tokenizer_json_path, ": ", made.status().message()));
  return made;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  auto made = std::unique_ptr<Tokenizer>(new Tokenizer());
  APB_RETURN_IF_ERROR(made->ReadTokenizer(tokenizer_json));
  if (!tokenizer_config_json.empty()) APB_RETURN_IF_ERROR(made->ReadConfig(tokenizer_config_json));
  return made;
}

absl::Status Tokenizer::ReadTokenizer(std::string_view text) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json json, base::ParseJsonObject(text, "tokenizer.json"));
  APB_ASSIGN_OR_RETURN(normalizer_, Normalizer::FromJson(FieldOrNull(json, "normalizer")));
  APB_ASSIGN_OR_RETURN(pre_tokenizer_, PreTokenizer::FromJson(FieldOrNull(json, "pre_tokenizer")));
  const nlohmann::json& model = FieldOrNull(json, "model");
  if (!model.is_object()) return absl::InvalidArgumentError("field \"model\" must be an object");
  APB_ASSIGN_OR_RETURN(model_, BpeModel::FromJson(model, pre_tokenizer_.maps_bytes()));
  APB_ASSIGN_OR_RETURN(
      added_, AddedVocabulary::FromJson(FieldOrNull(json, "added_tokens"), model_, normalizer_));
  APB_ASSIGN_OR_RETURN(decoder_, TokenDecoder::FromJson(FieldOrNull(json, "decoder")));

  int32_t highest = -1;
  for (const auto& [token, id] : model_.vocabulary()) highest = std::max(highest, id);
  for (const AddedToken& token : added_.tokens()) highest = std::max(highest, token.id);
  if (highest < 0) return absl::InvalidArgumentError("the vocabulary is empty");
  tokens_.resize(highest + 1);
  is_token_.resize(highest + 1);
  for (const auto& [token, id] : model_.vocabulary()) {
    if (is_token_[id])
      return absl::InvalidArgumentError(absl::StrCat("model.vocab: id ", id, " is used by \"",
                                                     tokens_[id], "\" and \"", token, "\""));
    tokens_[id] = token;
    is_token_[id] = true;
  }
  for (const AddedToken& token : added_.tokens()) {
    tokens_[token.id] = token.content;
    is_token_[token.id] = true;
  }
  for (int32_t id = 0; id < vocab_size(); ++id)
    max_token_bytes_ = std::max(max_token_bytes_, static_cast<int64_t>(TokenBytes(id).size()));

  APB_ASSIGN_OR_RETURN(TokensAround around, ReadPostProcessor(FieldOrNull(json, "post_processor")));
  for (const std::vector<int32_t>& ids : {around.prefix, around.suffix}) {
    for (const int32_t id : ids) {
      if (!IsToken(id))
        return absl::InvalidArgumentError(absl::StrCat("post_processor: id ", id, " is no token"));
    }
  }
  prefix_ids_ = std::move(around.prefix);
  suffix_ids_ = std::move(around.suffix);
  return absl::OkStatus();
}

absl::Status Tokenizer::ReadConfig(std::string_view text) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json json,
                       base::ParseJsonObject(text, "tokenizer_config.json"));
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    const nlohmann::json& field = FieldOrNull(json, name);
    if (field.is_null()) continue;
    if (field.is_string()) {
      special_tokens_[name] = field.get<std::string>();
    } else {
      base::JsonReader token(field, absl::StrCat("tokenizer_config.json: ", name, "."));
      special_tokens_[name] = token.String("content");
      APB_RETURN_IF_ERROR(token.status());
    }
  }
  return absl::OkStatus();
}

std::optional<int32_t> Tokenizer::SpecialTokenId(const std::string& name) const {
  auto it = special_tokens_.find(name);
  return it == special_tokens_.end() ? std::nullopt : TokenId(it->second);
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const {
  for (const AddedToken& added : added_.tokens()) {
    if (added.content == token) return added.id;
  }
  return model_.TokenId(token);
}

bool Tokenizer::IsToken(int32_t id) const { return id >= 0 && id < vocab_size() && is_token_[id]; }

bool Tokenizer::IsSpecial(int32_t id) const {
  const AddedToken* added = added_.FindId(id);
  return added != nullptr && added->special;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  if (!IsToken(id)) return "";
  if (IsSpecial(id)) return tokens_[id];
  return decoder_.Bytes(tokens_[id]);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  APB_ASSIGN_OR_RETURN(Encoding encoding, EncodeWithOffsets(text, options));
  return std::move(encoding.ids);
}

absl::StatusOr<Encoding> Tokenizer::EncodeWithOffsets(std::string_view text,
                                                      const EncodeOptions& options) const {
  if (text.size() > std::numeric_limits<uint32_t>::max())
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes; less than 4 GiB can be tokenized"));
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos)
    return absl::InvalidArgumentError(absl::StrCat("the text is not valid UTF-8 at byte ", bad));
  const TracedView whole{text};
  Encoding out;
  if (options.add_special_tokens) {
    for (const int32_t id : prefix_ids_) out.Add(id, 0);
  }
  PieceEncoder encoder(model_, out);
  auto special_allowed = [&](const ByteRange& range) {
    return options.parse_special && !Overlaps(options.plain_ranges, range);
  };
  size_t done = 0;
  for (const AddedVocabulary::Match& match :
       added_.Find(text, /*normalized=*/false, special_allowed)) {
    APB_RETURN_IF_ERROR(EncodePiece(whole.Part(done, match.range.begin), options, encoder, out));
    out.Add(match.id, whole.Origin(match.range.begin));
    done = match.range.end;
  }
  APB_RETURN_IF_ERROR(EncodePiece(whole.Part(done, text.size()), options, encoder, out));
  if (options.add_special_tokens) {
    for (const int32_t id : suffix_ids_) out.Add(id, static_cast<uint32_t>(text.size()));
  }
  return out;
}

absl::Status Tokenizer::EncodePiece(const TracedView& piece, const EncodeOptions& options,
                                    PieceEncoder& encoder, Encoding& out) const {
  if (piece.text.empty()) return absl::OkStatus();
  const TextStart start = piece.begin == 0 ? options.start : TextStart::kAfterSpecialToken;
  std::optional<TracedText> normalized;
  if (!normalizer_.is_identity()) {
    APB_ASSIGN_OR_RETURN(normalized, normalizer_.Apply(piece, start != TextStart::kMidText));
  }
  const TracedView source = normalized.has_value() ? normalized->view() : piece;
  auto origin = [&](size_t pos) -> size_t {
    return pos < source.text.size() ? source.Origin(pos) : piece.begin + piece.text.size();
  };
  auto special_allowed = [&](const ByteRange& range) {
    return options.parse_special &&
           !Overlaps(options.plain_ranges, {origin(range.begin), origin(range.end)});
  };
  auto encode = [&](size_t begin, size_t end) {
    return pre_tokenizer_.Split(source.Part(begin, end),
                                begin == 0 ? start : TextStart::kAfterSpecialToken,
                                [&](const TracedView& word) { encoder.Encode(word); });
  };
  size_t done = 0;
  for (const AddedVocabulary::Match& match :
       added_.Find(source.text, /*normalized=*/true, special_allowed)) {
    APB_RETURN_IF_ERROR(encode(done, match.range.begin));
    out.Add(match.id, source.Origin(match.range.begin));
    done = match.range.end;
  }
  return encode(done, source.text.size());
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special) const {
  std::string bytes;
  DecodeState state;
  for (const int32_t id : ids) {
    if (!IsToken(id))
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not in the vocabulary of ", vocab_size()));
    if (skip_special && IsSpecial(id)) continue;
    bytes += decoder_.Next(tokens_[id], state);
  }
  return TakeDecodable(bytes, /*final=*/true);
}

}  // namespace apb::text
