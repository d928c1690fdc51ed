// The events of a request, in the order in which a client learns them: at most one Queued, any
// number of Progress, any number of TokenChunk, then exactly one of Completed, ContextInfo (for a
// request that creates a context) and Failed.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace apb::request {

struct Queued {
  int64_t position = 0;  // requests that waited ahead of this one
  int64_t prompt_tokens = 0;
};

// As SequenceProgress in worker_group_service.proto.
struct Progress {
  int64_t processed_tokens = 0;
  int64_t total_tokens = 0;
  int64_t cached_tokens = 0;
  double elapsed_seconds = 0;
  double eta_seconds = 0;
};

struct TokenAlternative {
  int32_t id = 0;
  // The token's bytes, maybe a part of a UTF-8 character.
  std::string bytes;
  double logprob = 0;
};

struct TokenLogprob {
  TokenAlternative chosen;
  std::vector<TokenAlternative> top;  // best first
};

struct TokenChunk {
  // Without the stop token.
  std::vector<int32_t> ids;
  std::string text;  // complete UTF-8 characters; may be empty while text is held back
  std::vector<TokenLogprob> logprobs;
};

enum class FinishReason { kStop, kLength };

struct Completed {
  FinishReason reason = FinishReason::kStop;
  std::string stop_string;  // the stop string that matched, or empty
  int32_t stop_token = -1;  // the stop token that came, or -1
  int64_t prompt_tokens = 0;
  // The stop token included.
  int64_t completion_tokens = 0;
  // Prompt tokens whose KV was already in the cache.
  int64_t cached_tokens = 0;
  std::string strategy;
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

// A context as clients see it.
struct ContextInfo {
  std::string id;
  absl::Time created;
  absl::Time expires_at;
  absl::Duration ttl;
  bool is_lost = false;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  std::string strategy;
  double prefill_seconds = 0;
};

struct Failed {
  absl::Status status;
};

using Event = std::variant<Queued, Progress, TokenChunk, Completed, ContextInfo, Failed>;

// Receives the events of one request, one at a time, from any thread. It must not block and must
// not call the request. It returns false if the client is gone or too slow; the request is then
// cancelled and no event follows.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual bool OnEvent(Event event) = 0;
};

}  // namespace apb::request
