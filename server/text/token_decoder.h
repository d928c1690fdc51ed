// The "decoder" of tokenizer.json: the bytes that a token adds to a text. Supports ByteLevel,
// Metaspace, and Sequences of Replace, ByteFallback, Fuse and Strip.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::text {

// How far a text has been decoded.
struct DecodeState {
  bool at_begin = true;   // no token was decoded yet
  bool may_strip = true;  // only stripped characters so far
  int64_t stripped_count = 0;
};

class TokenDecoder {
 public:
  TokenDecoder() = default;  // joins tokens with blanks
  // `json` may be null. kUnimplemented for another decoder.
  static absl::StatusOr<TokenDecoder> FromJson(const nlohmann::json& json);

  // The bytes that this token adds. They may be a part of a UTF-8 character; the caller handles
  // broken characters.
  std::string Next(std::string_view token, DecodeState& state) const;
  // The bytes of a token in the middle of a text.
  std::string Bytes(std::string_view token) const;

 private:
  absl::Status ReadStep(const nlohmann::json& json, const std::string& where);
  std::string TokenBytes(std::string_view token, bool is_first) const;

  bool join_with_blanks_ = true;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
  std::string metaspace_;  // empty: no Metaspace
  bool metaspace_drops_first_ = true;
  std::vector<std::pair<std::string, std::string>> replacements_;
  // Strip removes up to strip_count_ of this character at the beginning: of each token, or of the
  // text if Fuse comes before it.
  std::string strip_content_;
  int64_t strip_count_ = 0;
  bool strip_text_ = false;
};

}  // namespace apb::text
