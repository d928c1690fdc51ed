// One request from its admission to its end. Thread-safe; the mutex puts its events in order. The
// client's connection holds it, and so do the text pool and the worker group while they work on it.
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
  // `request` is resolved (admission.h). `context` is the one that the request goes on from, or
  // null; it is shared with the store, which may drop it earlier. `waiting_ahead`: requests that
  // waited when this one arrived.
  ActiveRequest(Frontend& frontend, request::CanonicalRequest request,
                std::shared_ptr<const contexts::Context> context,
                std::shared_ptr<request::EventSink> sink, int64_t waiting_ahead);

  // The client is gone: no event follows, and the worker stops at the next step border. Idempotent.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  // The server gives the request up: the sink gets Failed, unless the request has ended.
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Does the text work and submits the sequence. Runs on the text pool.
  void Prepare() ABSL_LOCKS_EXCLUDED(mutex_);

  void OnToken(const cluster::v1::TokenEvent& token) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnProgress(const cluster::v1::SequenceProgress& progress) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void OnEnd(const cluster::v1::SequenceEnd& end) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnLost(const std::string& why) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // kText: on the text pool. kWaiting: at the worker. kRunning: the worker has reported work on it.
  enum class State { kText, kWaiting, kRunning, kDone };

  // The text work. Fills `created` for a request that creates a context.
  absl::StatusOr<text::PromptSplit> PrepareText(contexts::Context& created) const;
  // Submits the sequence to a group. On an error the caller fails the request.
  absl::Status Submit(const text::PromptSplit& prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  cluster::v1::Submit MakeSubmit(const text::PromptSplit& prompt, int64_t budget) const;
  // Stores the context whose prompt the worker has computed, and ends the request.
  void KeepContext(const cluster::v1::SequenceEnd& end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartRunning() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Emit(request::Event event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends a request whose client is gone or reads too slowly.
  void CutOff() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Complete(request::Completed completed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Cancels the sequence at the worker and leaves all accounts. Nothing happens to the request
  // afterwards.
  void Finish(std::string_view outcome, const request::Completed& completed,
              std::string_view detail) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Frontend& frontend_;
  const request::CanonicalRequest request_;
  const std::shared_ptr<const contexts::Context> context_;
  const std::shared_ptr<request::EventSink> sink_;
  const int64_t waiting_ahead_;

  absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kText;
  contexts::Context created_ ABSL_GUARDED_BY(mutex_);  // for a request that creates a context
  // True while a place for created_ is reserved in the store.
  bool has_place_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<cluster::WorkerGroup> group_ ABSL_GUARDED_BY(mutex_);
  uint64_t sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<request::TokenStream> stream_ ABSL_GUARDED_BY(mutex_);
  int64_t prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  // Prompt tokens whose KV was already in the cache.
  int64_t cached_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string strategy_ ABSL_GUARDED_BY(mutex_);  // as the worker reports it
  double queue_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time submitted_ ABSL_GUARDED_BY(mutex_);
  absl::Time first_token_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time last_token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace apb::frontend
