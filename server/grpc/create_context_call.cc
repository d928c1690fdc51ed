// The reactor of the call, and the sink for its request's events.
#include "server/grpc/create_context_call.h"

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/grpc/request_codec.h"
#include "server/request/grpc_status.h"
#include "server/request/status_map.h"

namespace apb::grpc_api {
namespace {

namespace pb = inference::v1;

// Finishes the call exactly once. The request may hold the sink longer than the call lives.
class ContextSink final : public request::EventSink {
 public:
  ContextSink(frontend::Frontend& frontend, grpc::ServerUnaryReactor* reactor,
              pb::Context* response)
      : frontend_(frontend), reactor_(reactor), response_(response) {}

  bool OnEvent(request::Event event) override {
    absl::MutexLock lock(&mutex_);
    if (const auto* failed = std::get_if<request::Failed>(&event)) FinishLocked(failed->status);
    if (const auto* context = std::get_if<request::ContextInfo>(&event)) {
      if (reactor_ != nullptr) *response_ = ToMessage(*context, frontend_.options().model);
      FinishLocked(absl::OkStatus());
    }
    return true;
  }

  void Finish(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    FinishLocked(status);
  }

 private:
  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (reactor_ == nullptr) return;
    frontend_.metrics().GrpcRequest("CreateContext", request::CodeName(status.code()));
    reactor_->Finish(request::ToGrpc(status));
    reactor_ = nullptr;
  }

  frontend::Frontend& frontend_;
  absl::Mutex mutex_;
  grpc::ServerUnaryReactor* reactor_ ABSL_GUARDED_BY(mutex_);  // null once the call is finished
  pb::Context* const response_ ABSL_PT_GUARDED_BY(mutex_);
};

class CreateContextReactor final : public grpc::ServerUnaryReactor {
 public:
  CreateContextReactor(frontend::Frontend& frontend, pb::Context* response)
      : sink_(std::make_shared<ContextSink>(frontend, this, response)) {}

  void Start(frontend::Frontend& frontend, absl::StatusOr<request::CanonicalRequest> request) {
    absl::Status status = request.status();
    absl::MutexLock lock(&mutex_);
    if (status.ok()) {
      auto active = frontend.Start(*std::move(request), sink_);
      status = active.status();
      if (active.ok()) active_ = *std::move(active);
      if (cancelled_ && active_ != nullptr) active_->Cancel();
    }
    if (!status.ok()) sink_->Finish(status);
  }

  // The client is gone, or its deadline has passed.
  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      if (active_ != nullptr) active_->Cancel();
    }
    sink_->Finish(absl::CancelledError("cancelled by the client"));
  }

  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<ContextSink> sink_;  // shared with the request
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<frontend::ActiveRequest> active_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

grpc::ServerUnaryReactor* StartCreateContext(frontend::Frontend& frontend,
                                             absl::StatusOr<request::CanonicalRequest> request,
                                             pb::Context* response) {
  auto* reactor = new CreateContextReactor(frontend, response);
  reactor->Start(frontend, std::move(request));
  return reactor;
}

}  // namespace apb::grpc_api
