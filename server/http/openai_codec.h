// Bodies of OpenAI's API (and vLLM's tokenize calls) to canonical requests. Pure functions; ranges
// are left to admission. A field that would change the answer and is not supported is an error,
// unknown fields are ignored.
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
// Has no OpenAI counterpart: `messages` or `prompt`, `apb`, `ttl_seconds`.
absl::StatusOr<Generation> ParseNewContext(const nlohmann::json& body);
absl::StatusOr<request::CanonicalRequest> ParseTokenize(const nlohmann::json& body);
absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const nlohmann::json& body);

}  // namespace apb::http_api
