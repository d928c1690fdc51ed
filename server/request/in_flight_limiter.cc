// Counting requests.
#include "server/request/in_flight_limiter.h"

#include "absl/strings/str_cat.h"
#include "server/request/status_map.h"

namespace apb::request {

InFlightLimiter::InFlightLimiter(Limits limits, observability::Metrics& metrics)
    : limits_(limits), metrics_(metrics) {}

void InFlightLimiter::Publish() { metrics_.SetRequests(running_, waiting_, waiting_tokens_); }

absl::Status InFlightLimiter::AddWaiting(int64_t* waiting_ahead) {
  absl::MutexLock lock(&mutex_);
  if (waiting_ >= limits_.waiting_requests) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat(
            waiting_, " requests are waiting already; the limit is ", limits_.waiting_requests)),
        1);
  }
  *waiting_ahead = waiting_++;
  Publish();
  return absl::OkStatus();
}

absl::Status InFlightLimiter::AddTokens(int64_t tokens) {
  absl::MutexLock lock(&mutex_);
  if (waiting_tokens_ > 0 && waiting_tokens_ + tokens > limits_.waiting_tokens) {
    return WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                              waiting_tokens_, " prompt tokens are waiting already, ", tokens,
                              " more exceed the limit of ", limits_.waiting_tokens)),
                          2);
  }
  waiting_tokens_ += tokens;
  Publish();
  return absl::OkStatus();
}

void InFlightLimiter::StartRunning(int64_t waiting_tokens) {
  absl::MutexLock lock(&mutex_);
  --waiting_;
  waiting_tokens_ -= waiting_tokens;
  ++running_;
  Publish();
}

void InFlightLimiter::EndWaiting(int64_t waiting_tokens) {
  absl::MutexLock lock(&mutex_);
  --waiting_;
  waiting_tokens_ -= waiting_tokens;
  Publish();
}

void InFlightLimiter::EndRunning() {
  absl::MutexLock lock(&mutex_);
  --running_;
  Publish();
}

int64_t InFlightLimiter::waiting() const {
  absl::MutexLock lock(&mutex_);
  return waiting_;
}

int64_t InFlightLimiter::running() const {
  absl::MutexLock lock(&mutex_);
  return running_;
}

}  // namespace apb::request
