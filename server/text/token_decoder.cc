// The bytes of ByteFallback tokens go into the stream unchanged. The `tokenizers` package turns a
// whole run of them into U+FFFD when a part of the run is broken, which a stream cannot know in
// advance.
#include "server/text/token_decoder.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/bpe_model.h"
#include "server/text/component.h"

namespace apb::text {
namespace {

constexpr int64_t kMaxStrip = 1 << 20;

// "<0x0A>" -> 10; -1 for other tokens.
int FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return -1;
    value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::FromJson(const nlohmann::json& json) {
  TokenDecoder decoder;
  if (json.is_null()) return decoder;
  decoder.join_with_blanks_ = false;
  base::JsonReader reader(json, "decoder.");
  const std::string type = reader.String("type");
  APB_RETURN_IF_ERROR(reader.status());
  if (type != "Sequence") {
    APB_RETURN_IF_ERROR(decoder.ReadStep(json, "decoder"));
    return decoder;
  }
  const nlohmann::json* list = reader.Array("decoders");
  APB_RETURN_IF_ERROR(reader.status());
  for (const nlohmann::json& step : *list) {
    if (decoder.byte_level_ || !decoder.metaspace_.empty())
      return absl::UnimplementedError(
          "decoder: a step after ByteLevel or Metaspace is not supported");
    APB_RETURN_IF_ERROR(decoder.ReadStep(step, "decoder.decoders"));
  }
  return decoder;
}

absl::Status TokenDecoder::ReadStep(const nlohmann::json& json, const std::string& where) {
  base::JsonReader reader(json, where + ".");
  const std::string type = reader.String("type");
  APB_RETURN_IF_ERROR(reader.status());
  if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Metaspace") {
    metaspace_ = reader.String("replacement", "\u2581");
    const bool add_prefix_space = reader.Boolean("add_prefix_space", true);
    metaspace_drops_first_ =
        reader.String("prepend_scheme", add_prefix_space ? "always" : "never") != "never";
  } else if (type == "Replace") {
    Pattern pattern = ReadPattern(reader);
    std::string content = reader.String("content");
    APB_RETURN_IF_ERROR(reader.status());
    if (pattern.is_regex || byte_fallback_ || fused_)
      return absl::UnimplementedError(absl::StrCat(where, ": this Replace is not supported"));
    replacements_.emplace_back(std::move(pattern.text), std::move(content));
  } else if (type == "Strip") {
    strip_content_ = reader.String("content");
    strip_count_ = reader.Integer("start", 0, kMaxStrip, 0);
    const int64_t stop = reader.Integer("stop", 0, kMaxStrip, 0);
    APB_RETURN_IF_ERROR(reader.status());
    if (stop != 0 || strip_content_.empty())
      return absl::UnimplementedError(
          absl::StrCat(where, ": Strip is supported at the beginning only"));
    strip_text_ = fused_;
  } else {
    return absl::UnimplementedError(
        absl::StrCat(where, ": decoder type \"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

std::string TokenDecoder::TokenBytes(std::string_view token, bool is_first) const {
  if (byte_level_) return ByteLevelBytes(token);
  std::string bytes(token);
  for (const auto& [pattern, content] : replacements_)
    bytes = absl::StrReplaceAll(bytes, {{pattern, content}});
  if (byte_fallback_) {
    if (const int byte = FallbackByte(bytes); byte >= 0)
      return std::string(1, static_cast<char>(byte));
  }
  if (!metaspace_.empty())
    bytes =
        absl::StrReplaceAll(bytes, {{metaspace_, is_first && metaspace_drops_first_ ? "" : " "}});
  return bytes;
}

std::string TokenDecoder::Next(std::string_view token, DecodeState& state) const {
  std::string bytes = TokenBytes(token, state.at_begin);
  if (strip_count_ > 0) {
    if (!strip_text_) state = {state.at_begin, true, 0};
    std::string_view rest = bytes;
    while (state.may_strip && state.stripped_count < strip_count_ &&
           rest.starts_with(strip_content_)) {
      rest.remove_prefix(strip_content_.size());
      ++state.stripped_count;
    }
    if (!rest.empty()) state.may_strip = false;
    bytes = std::string(rest);
  }
  if (join_with_blanks_ && !state.at_begin) bytes.insert(0, 1, ' ');
  state.at_begin = false;
  return bytes;
}

std::string TokenDecoder::Bytes(std::string_view token) const { return TokenBytes(token, false); }

}  // namespace apb::text
