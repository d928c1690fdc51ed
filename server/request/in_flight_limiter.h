// Counts the requests that wait and run, and decides whether one more may come. Thread-safe; each
// call is one short lock.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/observability/metrics.h"

namespace apb::request {

// A request waits from its arrival until the worker reports its first work on it.
class InFlightLimiter {
 public:
  struct Limits {
    // Sum of the waiting prompts' tokens.
    int64_t waiting_requests = 128;
    int64_t waiting_tokens = 4 << 20;
  };
  // `metrics` must outlive the limiter.
  InFlightLimiter(Limits limits, observability::Metrics& metrics);

  // Adds a waiting request and sets `waiting_ahead` to the number before it. kResourceExhausted
  // when too many requests wait.
  absl::Status AddWaiting(int64_t* waiting_ahead);
  // Adds the tokens of a waiting request once its length is known. kResourceExhausted when too many
  // tokens wait; the only waiting prompt is always accepted.
  absl::Status AddTokens(int64_t tokens);
  // These end a state; `waiting_tokens` is what AddTokens has added for the request.
  void StartRunning(int64_t waiting_tokens);
  void EndWaiting(int64_t waiting_tokens);
  void EndRunning();

  int64_t waiting() const;
  int64_t running() const;

 private:
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  observability::Metrics& metrics_;
  mutable absl::Mutex mutex_;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace apb::request
