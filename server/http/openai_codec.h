// Translates bodies of OpenAI's API (and of vLLM's tokenize calls) into canonical requests. Pure
// functions; admission checks the ranges. kInvalidArgument names the field. Unknown fields are
// ignored, but an unsupported field that would change the answer is an error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/request/canonical_request.h"

namespace apb::http_api {

struct Generation {
  request::CanonicalRequest request;
  bool stream = false;
  bool include_usage = false;
};

absl::StatusOr<Generation> ParseCompletion(const nlohmann::json& body);
absl::StatusOr<Generation> ParseChat(const nlohmann::json& body);
// This endpoint has no OpenAI counterpart. It takes `messages` or `prompt`, `model`, `apb` and
// `ttl_seconds`.
absl::StatusOr<Generation> ParseNewContext(const nlohmann::json& body);
absl::StatusOr<request::CanonicalRequest> ParseTokenize(const nlohmann::json& body);
absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const nlohmann::json& body);

}  // namespace apb::http_api
