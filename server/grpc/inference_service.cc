// The calls of the public service.
#include "server/grpc/inference_service.h"

#include <algorithm>
#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/grpc/create_context_call.h"
#include "server/grpc/request_codec.h"
#include "server/request/api_keys.h"
#include "server/request/grpc_status.h"
#include "server/request/status_map.h"

namespace apb::grpc_api {
namespace {

namespace pb = inference::v1;

class GenerateReactor;

// Sends the events of one call. The request may hold the sink longer than the call lives; events
// are then dropped.
class Sink final : public request::EventSink {
 public:
  Sink(GenerateReactor* reactor, std::string request_id, size_t max_bytes)
      : reactor_(reactor), request_id_(std::move(request_id)), max_bytes_(max_bytes) {}

  bool OnEvent(request::Event event) override;
  void OnWriteDone(bool ok);
  void Finish(const absl::Status& status);
  void Abandon(const absl::Status& status);
  void Detach();

 private:
  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Like FinishLocked, but drops the queued messages and breaks off the pending write.
  void AbandonLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  GenerateReactor* reactor_ ABSL_GUARDED_BY(mutex_);
  const std::string request_id_;
  const size_t max_bytes_;
  // The first one is being written.
  std::deque<pb::GenerateResponse> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;      // no event may follow
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // reactor_->Finish was called
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class GenerateReactor final : public grpc::ServerWriteReactor<pb::GenerateResponse> {
 public:
  GenerateReactor(frontend::Frontend& frontend, grpc::CallbackServerContext* context,
                  std::string request_id, size_t max_bytes)
      : frontend_(frontend),
        context_(context),
        sink_(std::make_shared<Sink>(this, std::move(request_id), max_bytes)) {}

  void Start(absl::StatusOr<request::CanonicalRequest> request) {
    absl::Status status = request.status();
    if (status.ok()) {
      auto active = frontend_.Start(*std::move(request), sink_);
      status = active.status();
      absl::MutexLock lock(&mutex_);
      if (active.ok()) active_ = *std::move(active);
      if (cancelled_ && active_ != nullptr) active_->Cancel();
    }
    if (!status.ok()) sink_->Finish(status);
  }

  void OnWriteDone(bool ok) override { sink_->OnWriteDone(ok); }

  // The client is gone, or its deadline has passed.
  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      if (active_ != nullptr) active_->Cancel();
    }
    sink_->Abandon(absl::CancelledError("cancelled by the client"));
  }

  void OnDone() override {
    sink_->Detach();
    delete this;
  }

  // Without this a write to a client that does not read could wait for ever.
  void BreakOff() { context_->TryCancel(); }

  void CountStatus(const absl::Status& status) {
    frontend_.metrics().GrpcRequest("Generate", request::CodeName(status.code()));
  }

 private:
  frontend::Frontend& frontend_;
  grpc::CallbackServerContext* const context_;  // belongs to the call, which outlives this
  const std::shared_ptr<Sink> sink_;            // shared with the request
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<frontend::ActiveRequest> active_ ABSL_GUARDED_BY(mutex_);
};

bool Sink::OnEvent(request::Event event) {
  absl::MutexLock lock(&mutex_);
  if (reactor_ == nullptr || over_) return true;
  if (const auto* failed = std::get_if<request::Failed>(&event)) {
    FinishLocked(failed->status);
    return true;
  }
  pb::GenerateResponse response = ToMessage(event, request_id_);
  const size_t bytes = response.ByteSizeLong();
  if (queued_bytes_ + bytes > max_bytes_) {
    AbandonLocked(absl::ResourceExhaustedError("the client reads too slowly"));
    return false;
  }
  queued_bytes_ += bytes;
  queue_.push_back(std::move(response));
  if (queue_.size() == 1) reactor_->StartWrite(&queue_.front());
  if (std::holds_alternative<request::Completed>(event)) FinishLocked(absl::OkStatus());
  return true;
}

void Sink::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  queued_bytes_ -= std::min(queued_bytes_, queue_.front().ByteSizeLong());
  queue_.pop_front();
  if (!ok) queue_.clear();  // the call is broken; OnCancel follows
  Advance();
}

void Sink::Finish(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  FinishLocked(status);
}

void Sink::Abandon(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  AbandonLocked(status);
}

void Sink::FinishLocked(const absl::Status& status) {
  if (reactor_ == nullptr || over_) return;
  over_ = true;
  status_ = status;
  if (queue_.empty()) Advance();
}

void Sink::AbandonLocked(const absl::Status& status) {
  if (reactor_ == nullptr || finished_) return;
  if (queue_.size() > 1) queue_.erase(queue_.begin() + 1, queue_.end());
  if (!queue_.empty()) reactor_->BreakOff();  // the write's OnWriteDone then finishes the call
  FinishLocked(status);
}

void Sink::Advance() {
  if (finished_ || reactor_ == nullptr) return;
  if (!queue_.empty()) {
    reactor_->StartWrite(&queue_.front());
  } else if (over_) {
    finished_ = true;
    reactor_->CountStatus(status_);
    reactor_->Finish(request::ToGrpc(status_));
  }
}

void Sink::Detach() {
  absl::MutexLock lock(&mutex_);
  reactor_ = nullptr;
}

std::string BearerToken(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return "";
  std::string_view value(found->second.data(), found->second.size());
  if (!absl::StartsWithIgnoreCase(base::AbslView(value), "bearer ")) return "";
  return std::string(value.substr(7));
}

}  // namespace

InferenceService::InferenceService(Options options, frontend::Frontend& frontend)
    : options_(std::move(options)), frontend_(frontend) {}

absl::Status InferenceService::Authorize(const grpc::CallbackServerContext& context) const {
  if (request::IsAllowed(options_.api_keys, BearerToken(context))) return absl::OkStatus();
  return absl::UnauthenticatedError(
      "metadata `authorization: Bearer KEY` with a valid key is needed");
}

std::string InferenceService::OwnerOf(const grpc::CallbackServerContext& context) const {
  return request::OwnerOf(options_.api_keys, BearerToken(context));
}

absl::Status InferenceService::CheckModel(const std::string& model) const {
  if (model.empty() || model == frontend_.options().model) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("the model `", model.substr(0, 200), "` does not exist"));
}

grpc::ServerWriteReactor<pb::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const pb::GenerateRequest* message) {
  const absl::Status authorized = Authorize(*context);
  absl::StatusOr<request::CanonicalRequest> request =
      authorized.ok() ? FromMessage(*message)
                      : absl::StatusOr<request::CanonicalRequest>(authorized);
  if (request.ok()) request->owner = OwnerOf(*context);
  const std::string id = request.ok() ? request->id : std::string();
  if (!id.empty()) context->AddInitialMetadata("x-request-id", id);
  auto* reactor = new GenerateReactor(frontend_, context, id, options_.max_stream_bytes);
  reactor->Start(std::move(request));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::CreateContext(grpc::CallbackServerContext* context,
                                                          const pb::CreateContextRequest* message,
                                                          pb::Context* response) {
  const absl::Status authorized = Authorize(*context);
  absl::StatusOr<request::CanonicalRequest> request =
      authorized.ok() ? FromMessage(*message)
                      : absl::StatusOr<request::CanonicalRequest>(authorized);
  if (request.ok()) {
    request->owner = OwnerOf(*context);
    context->AddInitialMetadata("x-request-id", request->id);
  }
  return StartCreateContext(frontend_, std::move(request), response);
}

grpc::ServerUnaryReactor* InferenceService::GetContext(grpc::CallbackServerContext* context,
                                                       const pb::GetContextRequest* message,
                                                       pb::Context* response) {
  return RunNow(context, "GetContext", [&]() -> absl::Status {
    APB_ASSIGN_OR_RETURN(const request::ContextInfo info,
                         frontend_.contexts().Describe(OwnerOf(*context), message->id()));
    *response = ToMessage(info, frontend_.options().model);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::ListContexts(grpc::CallbackServerContext* context,
                                                         const pb::ListContextsRequest*,
                                                         pb::ListContextsResponse* response) {
  return RunNow(context, "ListContexts", [&] {
    for (const request::ContextInfo& info : frontend_.contexts().List(OwnerOf(*context)))
      *response->add_contexts() = ToMessage(info, frontend_.options().model);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::DeleteContext(grpc::CallbackServerContext* context,
                                                          const pb::DeleteContextRequest* message,
                                                          pb::DeleteContextResponse*) {
  return RunNow(context, "DeleteContext",
                [&] { return frontend_.contexts().Delete(OwnerOf(*context), message->id()); });
}

grpc::ServerUnaryReactor* InferenceService::RunNow(grpc::CallbackServerContext* context,
                                                   const char* method,
                                                   const std::function<absl::Status()>& work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = Authorize(*context);
  if (status.ok()) status = work();
  frontend_.metrics().GrpcRequest(method, request::CodeName(status.code()));
  reactor->Finish(request::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::RunOnPool(grpc::CallbackServerContext* context,
                                                      const char* method,
                                                      std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = Authorize(*context);
  if (status.ok()) {
    const bool scheduled = frontend_.Schedule([this, reactor, method, work = std::move(work)] {
      const absl::Status result = work();
      frontend_.metrics().GrpcRequest(method, request::CodeName(result.code()));
      reactor->Finish(request::ToGrpc(result));
    });
    if (scheduled) return reactor;
    status = absl::ResourceExhaustedError("too many prompts wait for tokenization");
  }
  frontend_.metrics().GrpcRequest(method, request::CodeName(status.code()));
  reactor->Finish(request::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const pb::TokenizeRequest* message,
                                                     pb::TokenizeResponse* response) {
  return RunOnPool(context, "Tokenize", [this, message, response]() -> absl::Status {
    APB_ASSIGN_OR_RETURN(const request::CanonicalRequest request, FromMessage(*message));
    APB_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, frontend_.Tokenize(request));
    response->mutable_ids()->Add(ids.begin(), ids.end());
    response->set_max_model_len(frontend_.max_model_len());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const pb::DetokenizeRequest* message,
                                                       pb::DetokenizeResponse* response) {
  return RunOnPool(context, "Detokenize", [this, message, response]() -> absl::Status {
    APB_RETURN_IF_ERROR(CheckModel(message->model()));
    APB_ASSIGN_OR_RETURN(*response->mutable_text(),
                         frontend_.Detokenize({message->ids().begin(), message->ids().end()}));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const pb::GetModelInfoRequest* message,
                                                         pb::GetModelInfoResponse* response) {
  return RunNow(context, "GetModelInfo", [&]() -> absl::Status {
    APB_RETURN_IF_ERROR(CheckModel(message->model()));
    response->set_id(frontend_.options().model);
    response->set_max_model_len(frontend_.max_model_len());
    response->set_vocab_size(frontend_.prompts().vocab_size());
    response->set_dtype(frontend_.prompts().dtype());
    response->set_created(frontend_.start_seconds());
    for (const std::string& name : frontend_.groups().StrategyNames())
      response->add_strategies(name);
    for (const cluster::GroupInfo& group : frontend_.groups().Describe()) {
      response->set_has_retaining_heads(group.has_retaining_heads);
      if (!group.dtype.empty()) response->set_dtype(group.dtype);
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::GetServerInfo(grpc::CallbackServerContext* context,
                                                          const pb::GetServerInfoRequest*,
                                                          pb::GetServerInfoResponse* response) {
  return RunNow(context, "GetServerInfo", [&]() -> absl::Status {
    response->set_version(options_.version);
    for (const cluster::GroupInfo& group : frontend_.groups().Describe()) {
      pb::WorkerGroupInfo* info = response->add_groups();
      info->set_id(group.id);
      info->set_ranks(group.ranks);
      info->set_ready(group.ready);
      info->set_kv_tokens_total(group.kv_tokens_total);
      info->set_kv_tokens_used(group.kv_tokens_used);
      info->set_dtype(group.dtype);
      info->set_weight_type(group.weight_type);
      pb::Calibration* calibration = info->mutable_calibration();
      calibration->set_product_flops(group.calibration.product_flops);
      calibration->set_attention_flops(group.calibration.attention_flops);
      calibration->set_link_bytes_per_second(group.calibration.link_bytes_per_second);
      calibration->set_link_latency_seconds(group.calibration.link_latency_seconds);
    }
    response->set_running_requests(static_cast<int32_t>(frontend_.load().running()));
    response->set_waiting_requests(static_cast<int32_t>(frontend_.load().waiting()));
    return absl::OkStatus();
  });
}

}  // namespace apb::grpc_api
