// One request from its admission to its end. Thread-safe; the mutex orders its events. Held by the
// connection of its client and, while they have work with it, by the text pool and the worker
// group.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/cluster/worker_group.h"
#include "server/contexts/context.h"
#include "server/request/canonical_request.h"
#include "server/request/events.h"
#include "server/request/token_stream.h"
#include "server/text/document_splitter.h"

namespace apb::frontend {

class Frontend;

class ActiveRequest : public cluster::SequenceListener,
                      public std::enable_shared_from_this<ActiveRequest> {
 public:
  // `request` is resolved (admission.h). `context`: what it goes on from, or null (shared with the
  // store, which may drop it).
  ActiveRequest(Frontend& frontend, request::CanonicalRequest request,
                std::shared_ptr<const contexts::Context> context,
                std::shared_ptr<request::EventSink> sink, int64_t waiting_ahead);

  // The client is gone: no event follows, the worker stops at the next step border. Idempotent.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  // The server gives up: the sink gets Failed, unless the request is over.
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Text work and submission; on the text pool.
  void Prepare() ABSL_LOCKS_EXCLUDED(mutex_);

  void OnToken(const cluster::v1::TokenEvent& token) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnProgress(const cluster::v1::SequenceProgress& progress) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void OnEnd(const cluster::v1::SequenceEnd& end) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnLost(const std::string& why) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Text: on the pool. Waiting: at the worker. Running: the worker has reported work. Done.
  enum class State { kText, kWaiting, kRunning, kDone };

  // The text work; `created` is filled for a request that creates a context.
  absl::StatusOr<text::PromptSplit> PrepareText(contexts::Context& created) const;
  absl::Status Submit(const text::PromptSplit& prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  cluster::v1::Submit MakeSubmit(const text::PromptSplit& prompt, int64_t budget) const;
  void KeepContext(const cluster::v1::SequenceEnd& end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartRunning() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Emit(request::Event event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client is gone or too slow.
  void CutOff() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Complete(request::Completed completed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Leaves the worker and the accounts; the last thing that happens.
  void Finish(std::string_view outcome, const request::Completed& completed,
              std::string_view detail) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Frontend& frontend_;
  const request::CanonicalRequest request_;
  const std::shared_ptr<const contexts::Context> context_;
  const std::shared_ptr<request::EventSink> sink_;
  const int64_t waiting_ahead_;

  absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kText;
  contexts::Context created_ ABSL_GUARDED_BY(mutex_);  // of a request that creates a context
  bool has_place_ ABSL_GUARDED_BY(mutex_);             // reserved in the store for created_
  std::shared_ptr<cluster::WorkerGroup> group_ ABSL_GUARDED_BY(mutex_);
  uint64_t sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<request::TokenStream> stream_ ABSL_GUARDED_BY(mutex_);
  int64_t prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t cached_tokens_ ABSL_GUARDED_BY(mutex_) = 0;  // of the prompt: their KV was there
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string strategy_ ABSL_GUARDED_BY(mutex_);  // of the worker's reports
  double queue_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time submitted_ ABSL_GUARDED_BY(mutex_);
  absl::Time first_token_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time last_token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace apb::frontend
