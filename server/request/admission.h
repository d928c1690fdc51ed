// Every limit and default of a request, for both APIs. The functions are pure, except that they
// make random seeds and ids.
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

// A strategy that clients may name, as the worker groups describe it (cluster.v1.Hello). `auto`
// counts as exact and as able to balance.
struct Strategy {
  std::string name;
  bool exact = false;
  bool can_balance = false;
};

struct Limits {
  std::string model;              // the served name
  int64_t max_model_len = 0;      // tokens of prompt + completion
  int64_t max_token_bytes = 256;  // longest token of the vocabulary
  // Bytes of a text prompt, or of all messages of a chat.
  int64_t max_input_bytes = 64 << 20;
  int32_t vocab_size = 0;
  int64_t max_context_ttl_seconds = 0;
  // Empty while no group is ready; strategies are then not checked.
  std::vector<Strategy> strategies;
  std::string default_strategy = "auto";
  std::vector<int32_t> eos_token_ids;  // they end a completion, unless the request ignores them
};

// Checks everything that can be checked before tokenization. Errors name the field.
absl::Status CheckRequest(const CanonicalRequest& request, const Limits& limits);

// Checks a request and fills in every default but that of max_tokens, which depends on the prompt's
// length (CompletionBudget). `sampling` and `apb` then hold the values by which the worker
// computes. Errors name the field; the request may then be partly resolved.
absl::Status Resolve(const Limits& limits, CanonicalRequest& request);

// Replaces `asked`, the options of a request that goes on from a context, by the context's options.
// The request may leave out an option or repeat the context's value; `strategy` is the one that was
// used for the context. kInvalidArgument names an option that differs.
absl::Status TakeContextOptions(const common::v1::ApbOptions& context, const std::string& strategy,
                                const Limits& limits, common::v1::ApbOptions& asked);

// The number of tokens that may be generated after a prompt of this length; 0 for a request that
// creates a context. kInvalidArgument with the code context_length_exceeded if prompt and
// completion do not fit.
absl::StatusOr<int64_t> CompletionBudget(const CanonicalRequest& request, int64_t prompt_tokens,
                                         int64_t max_model_len);

// Whether `id` is 1 to 128 characters of [A-Za-z0-9._-].
bool IsValidRequestId(std::string_view id);
// 32 random hexadecimal digits.
std::string NewRequestId();

}  // namespace apb::request
