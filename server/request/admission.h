// Every limit and default of a request, for both APIs. Pure functions, but for the seeds and ids
// that they make.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/request/canonical_request.h"

namespace apb::request {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokens = 64;
inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxMessages = 4096;
inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int64_t kDefaultCompletionTokens = 16;

// A strategy that clients may ask for, as the worker groups tell (cluster.v1.Hello). `auto` counts
// as one that can do both.
struct Strategy {
  std::string name;
  bool exact = false;
  bool can_balance = false;
};

struct Limits {
  std::string model;              // the served name
  int64_t max_model_len = 0;      // tokens of prompt + completion
  int64_t max_token_bytes = 256;  // longest token of the vocabulary
  int64_t max_input_bytes = 64 << 20;
  int32_t vocab_size = 0;
  int64_t max_context_ttl_seconds = 0;
  // None: no group is ready, so that nothing is known of them.
  std::vector<Strategy> strategies;
  std::string default_strategy = "auto";
  std::vector<int32_t> eos_token_ids;  // end a completion unless it ignores them
};

// Checks all that can be checked before tokenization. Errors name the field.
absl::Status CheckRequest(const CanonicalRequest& request, const Limits& limits);

// Checks a request and fills in every default that does not depend on the prompt's length (that of
// max_tokens does: CompletionBudget). `sampling` and `apb` are then what the worker computes by.
// Errors name the field; the request is then as it was, or partly resolved.
absl::Status Resolve(const Limits& limits, CanonicalRequest& request);

// The options of the context replace those of a request that goes on from it. What the request may
// say of context parallelism is nothing, or what the context was made with, where `strategy` is
// what was used. Errors name the field.
absl::Status TakeContextOptions(const common::v1::ApbOptions& context, const std::string& strategy,
                                const Limits& limits, common::v1::ApbOptions& asked);

// The number of tokens that may be generated for a prompt of that length (none by a request that
// creates a context); kInvalidArgument with code context_length_exceeded when prompt and completion
// do not fit.
absl::StatusOr<int64_t> CompletionBudget(const CanonicalRequest& request, int64_t prompt_tokens,
                                         int64_t max_model_len);

// At most 128 characters of [A-Za-z0-9._-] and not empty.
bool IsValidRequestId(std::string_view id);
// 32 hexadecimal digits, unguessable enough to name a request.
std::string NewRequestId();

}  // namespace apb::request
