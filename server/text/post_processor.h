// The "post_processor" of tokenizer.json: the tokens before and after a text (begin and end of
// sequence).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::text {

struct TokensAround {
  std::vector<int32_t> prefix, suffix;
};

// Reads TemplateProcessing, ByteLevel (adds nothing) and Sequences of them. `json` may be null.
absl::StatusOr<TokensAround> ReadPostProcessor(const nlohmann::json& json);

}  // namespace apb::text
