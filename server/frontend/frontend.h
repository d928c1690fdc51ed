// A request's way through the server: admission, text work on the pool, a worker group, tokens back
// to the client. Both APIs start their requests here. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/cluster/group_registry.h"
#include "server/contexts/context_store.h"
#include "server/frontend/active_request.h"
#include "server/frontend/prompt_processor.h"
#include "server/frontend/text_pool.h"
#include "server/observability/metrics.h"
#include "server/request/admission.h"
#include "server/request/canonical_request.h"
#include "server/request/events.h"
#include "server/request/in_flight_limiter.h"

namespace apb::frontend {

struct FrontendOptions {
  std::string model;          // the served name
  int64_t max_model_len = 0;  // 0: as many as the model and the groups allow
  int64_t max_input_bytes = 64 << 20;
  request::InFlightLimiter::Limits queue;
  contexts::ContextStore::Options contexts;
  std::string default_strategy = "auto";
  int text_threads = 2;
  // Tasks that may wait for the text pool.
  size_t max_text_tasks = 512;
};

class Frontend {
 public:
  // All references must outlive the frontend.
  Frontend(FrontendOptions options, const PromptProcessor& prompts, cluster::GroupRegistry& groups,
           observability::Metrics& metrics);
  // Fails the requests in flight.
  ~Frontend();

  // Admits a request. On an error the request is refused and the sink hears nothing; otherwise the
  // sink gets its events. The sink is shared, because either the request or the client's connection
  // may be the last to use it.
  absl::StatusOr<std::shared_ptr<ActiveRequest>> Start(request::CanonicalRequest request,
                                                       std::shared_ptr<request::EventSink> sink);

  // Checks and tokenizes a prompt. Slow: call it on the pool.
  absl::StatusOr<std::vector<int32_t>> Tokenize(const request::CanonicalRequest& request) const;
  absl::StatusOr<std::string> Detokenize(const std::vector<int32_t>& ids) const;
  // Runs a task on the text pool; false when the pool's queue is full.
  bool Schedule(std::function<void()> task) { return pool_.Schedule(std::move(task)); }

  // From now on every new request is refused with kUnavailable.
  void BeginDrain();
  bool draining() const;
  // True if a request sent now would be computed.
  bool ready() const;
  size_t in_flight() const;
  // Waits until no request is in flight; false if some still are at the deadline.
  bool AwaitIdle(absl::Time deadline) const;
  // Ends all requests in flight with this status.
  void FailAll(const absl::Status& status);

  // Tokens of prompt + completion that a request may have at present.
  int64_t max_model_len() const;
  request::Limits limits() const;
  const FrontendOptions& options() const { return options_; }
  // When this server began, in seconds since the epoch; clients see it as their model's `created`.
  int64_t start_seconds() const { return start_seconds_; }
  const PromptProcessor& prompts() const { return prompts_; }
  const cluster::GroupRegistry& groups() const { return groups_; }
  contexts::ContextStore& contexts() { return contexts_; }
  const request::InFlightLimiter& load() const { return load_; }
  observability::Metrics& metrics() const { return metrics_; }

 private:
  friend class ActiveRequest;
  // Resolves the request and reserves its place in the queue, and in the store for a context.
  absl::Status Admit(request::CanonicalRequest& request, int64_t* waiting_ahead);
  // Finds the context that the request goes on from and copies its options into the request. Null
  // without a context.
  absl::StatusOr<std::shared_ptr<const contexts::Context>> UseContext(
      request::CanonicalRequest& request);
  void Forget(const ActiveRequest* request);

  const FrontendOptions options_;
  const int64_t start_seconds_ = absl::ToUnixSeconds(absl::Now());
  const PromptProcessor& prompts_;
  cluster::GroupRegistry& groups_;
  observability::Metrics& metrics_;
  request::InFlightLimiter load_;
  contexts::ContextStore contexts_;
  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<const ActiveRequest*, std::weak_ptr<ActiveRequest>> requests_
      ABSL_GUARDED_BY(mutex_);
  TextPool pool_;  // last, since its threads use all members above
};

}  // namespace apb::frontend
