// All contexts: prompts that were computed once and whose KV a worker group keeps, so that requests
// can go on from them. A context ends when no request has used it for its time to live, when it is
// deleted, or with its group. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/contexts/context.h"
#include "server/observability/metrics.h"
#include "server/request/events.h"

namespace apb::contexts {

class ContextStore {
 public:
  struct Options {
    int64_t max_contexts = 64;
    int64_t max_ttl_seconds = 86'400;  // a day
    // The clock; tests replace it.
    std::function<absl::Time()> now = [] { return absl::Now(); };
  };
  static constexpr int64_t kDefaultTtlSeconds = 3600;

  // `metrics` must outlive the store.
  ContextStore(Options options, observability::Metrics& metrics);
  ~ContextStore();

  // Reserves a place for one more context until Add or Unreserve; kResourceExhausted when all are
  // taken.
  absl::Status Reserve();
  void Unreserve();
  // Puts the context into a place that was reserved.
  request::ContextInfo Add(Context context);

  // Returns the context and starts its time to live anew. kNotFound, with the code
  // context_not_found or context_lost.
  absl::StatusOr<std::shared_ptr<const Context>> Use(std::string_view owner, std::string_view id);
  // Like Use, but changes nothing and accepts a lost context.
  absl::StatusOr<request::ContextInfo> Describe(std::string_view owner, std::string_view id) const;
  // The owner's contexts, oldest first.
  std::vector<request::ContextInfo> List(std::string_view owner) const;
  // Removes the context. Its KV is freed when the requests that use it have ended. kNotFound as for
  // Use.
  absl::Status Delete(std::string_view owner, std::string_view id);

  // Removes expired contexts and returns when the next one expires (infinite future without
  // contexts). The store's own thread calls it in time.
  absl::Time Expire();

  const Options& options() const { return options_; }

 private:
  struct Entry {
    std::shared_ptr<const Context> context;  // shared with the requests that use it
    absl::Time expires_at;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;

  static request::ContextInfo InfoOf(const Entry& entry);
  absl::StatusOr<Entries::const_iterator> Find(std::string_view owner, std::string_view id) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Erase(Entries::const_iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Time ExpireLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExpireLoop();

  const Options options_;
  observability::Metrics& metrics_;
  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  int64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Signalled when an expiry may be nearer than the thread knows, and when the thread must end.
  absl::CondVar changed_;
  std::thread expiry_;
};

}  // namespace apb::contexts
