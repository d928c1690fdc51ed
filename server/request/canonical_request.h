// The one request type behind both APIs. Translators fill in what the client sent and nothing else:
// every default, range and limit is in admission.h.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/time/time.h"
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
  nlohmann::json template_arguments = nlohmann::json::object();
};

struct TextInput {
  std::string text;
  bool add_special_tokens = true;
};

struct TokenInput {
  std::vector<int32_t> ids;
};

// Absent fields mean the default of admission.h.
struct Sampling {
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> logprobs;  // number of alternatives
  std::optional<int64_t> min_tokens;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_string = false;
  bool skip_special_tokens = true;
};

// What `strategy` and `compressor` may be, in the order of inference.v1.Strategy and Compressor;
// the first is "unset".
inline constexpr std::array<std::string_view, 9> kStrategyNames = {
    "", "auto", "full", "apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses"};
inline constexpr std::array<std::string_view, 4> kCompressorNames = {"", "retaining_heads",
                                                                     "query_aware", "random"};

// Context parallelism; empty strings and absent numbers mean the default.
struct ApbOptions {
  std::string strategy;
  std::string compressor;
  std::optional<std::string> query;
  std::optional<int64_t> anchor_length;
  std::optional<int64_t> passing_length;
  std::optional<int64_t> hosts;
  bool exact = false;
  std::optional<bool> balanced;
};

struct CanonicalRequest {
  std::string id;
  std::string model;
  Api api = Api::kCompletion;
  std::variant<TextInput, TokenInput, ChatInput> input;
  Sampling sampling;
  ApbOptions apb;
  // The context that the prompt goes on from.
  std::optional<std::string> context;
  std::string owner;  // of the contexts that it may use and create
  // Keep the prompt's KV as a context instead of generating; `apb.query` is a guess then.
  bool create_context = false;
  std::optional<int64_t> ttl_seconds;  // of the context
  bool report_progress = false;
  absl::Time arrival = absl::Now();
};

}  // namespace apb::request
