// The one request type behind both APIs. Translators copy into it what the client sent and nothing
// else; admission.h has every default, range and limit.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "apb/common/v1/context_parallel.pb.h"
#include "apb/common/v1/sampling.pb.h"
#include "nlohmann/json.hpp"

namespace apb::request {

enum class Api { kCompletion, kChat };

struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatInput {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;
  // chat_template_kwargs: more variables for the template; an object.
  nlohmann::json template_arguments = nlohmann::json::object();
};

struct TextInput {
  std::string text;
  bool add_special_tokens = true;
};

struct TokenInput {
  std::vector<int32_t> ids;
};

// The values of ApbOptions.compressor. (The worker groups tell the values of ApbOptions.strategy.)
inline constexpr std::array<std::string_view, 3> kCompressorNames = {"retaining_heads",
                                                                     "query_aware", "random"};

struct CanonicalRequest {
  std::string id;
  std::string model;
  Api api = Api::kCompletion;
  std::variant<TextInput, TokenInput, ChatInput> input;
  // As the client sent them, presence included; Resolve in admission.h fills in the defaults.
  common::v1::SamplingParams sampling;
  common::v1::ApbOptions apb;
  // The id of the context from which the prompt goes on.
  std::optional<std::string> context;
  std::string owner;  // whose contexts it may use and create
  // Keep the prompt's KV as a context instead of generating. `apb.query` is then only a guess.
  bool create_context = false;
  std::optional<int64_t> ttl_seconds;  // of the context
  bool report_progress = false;
  absl::Time arrival = absl::Now();
};

}  // namespace apb::request
