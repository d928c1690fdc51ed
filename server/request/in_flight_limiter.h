// How many requests wait and run, and whether one more may come. Thread-safe; each call is one
// short lock.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/observability/metrics.h"

namespace apb::request {

// A request waits from its arrival until the worker reports the first of its work.
class InFlightLimiter {
 public:
  struct Limits {
    int64_t waiting_requests = 128;
    int64_t waiting_tokens = 4 << 20;
  };
  InFlightLimiter(Limits limits, observability::Metrics& metrics);

  // One more waiting request; kResourceExhausted when too many wait. The order of arrival is the
  // position.
  absl::Status AddWaiting(int64_t* waiting_ahead);
  // Its length is known; kResourceExhausted when too many tokens wait. A request that waits alone
  // always may.
  absl::Status AddTokens(int64_t tokens);
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
