// Admission and the set of requests in flight.
#include "server/frontend/frontend.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::frontend {
namespace {

absl::Status ShuttingDown() {
  return request::WithRetryAfter(absl::UnavailableError("the server is shutting down"), 5);
}

}  // namespace
Frontend::Frontend(FrontendOptions options, const PromptProcessor& prompts,
                   cluster::GroupRegistry& groups, observability::Metrics& metrics)
    : options_(std::move(options)),
      prompts_(prompts),
      groups_(groups),
      metrics_(metrics),
      load_(options_.queue, metrics),
      contexts_(options_.contexts, metrics),
      pool_(options_.text_threads, options_.max_text_tasks) {}

Frontend::~Frontend() {
  BeginDrain();
  FailAll(absl::UnavailableError("the server is shutting down"));
}

int64_t Frontend::max_model_len() const {
  int64_t length = prompts_.max_position_embeddings();
  for (int64_t limit : {options_.max_model_len, groups_.max_model_len()}) {
    if (limit > 0) length = length > 0 ? std::min(length, limit) : limit;
  }
  return length;
}

request::Limits Frontend::limits() const {
  return {.model = options_.model,
          .max_model_len = max_model_len(),
          .max_token_bytes = prompts_.tokenizer().max_token_bytes(),
          .max_input_bytes = options_.max_input_bytes,
          .vocab_size = prompts_.vocab_size(),
          .max_context_ttl_seconds = options_.contexts.max_ttl_seconds,
          .strategies = groups_.Strategies(),
          .default_strategy = options_.default_strategy,
          .eos_token_ids = prompts_.stop_tokens()};
}

absl::Status Frontend::Admit(request::CanonicalRequest& request, int64_t* waiting_ahead) {
  if (draining()) return ShuttingDown();
  APB_RETURN_IF_ERROR(request::Resolve(limits(), request));
  if (!groups_.ready()) {
    return request::WithRetryAfter(absl::UnavailableError(groups_.absence()), 2);
  }
  APB_RETURN_IF_ERROR(load_.AddWaiting(waiting_ahead));
  absl::Status place = request.create_context ? contexts_.Reserve() : absl::OkStatus();
  if (!place.ok()) load_.EndWaiting(0);
  return place;
}

absl::StatusOr<std::shared_ptr<const contexts::Context>> Frontend::UseContext(
    request::CanonicalRequest& request) {
  if (!request.context.has_value()) return nullptr;
  APB_ASSIGN_OR_RETURN(std::shared_ptr<const contexts::Context> context,
                       contexts_.Use(request.owner, *request.context));
  APB_RETURN_IF_ERROR(
      request::TakeContextOptions(context->apb, context->strategy, limits(), request.apb));
  return context;
}

absl::StatusOr<std::shared_ptr<ActiveRequest>> Frontend::Start(
    request::CanonicalRequest request, std::shared_ptr<request::EventSink> sink) {
  int64_t waiting_ahead = 0;
  absl::StatusOr<std::shared_ptr<const contexts::Context>> context = UseContext(request);
  const absl::Status status = context.ok() ? Admit(request, &waiting_ahead) : context.status();
  if (!status.ok()) {
    metrics_.RequestRejected(request::RejectionReason(status));
    metrics_.RequestFinished({.outcome = "rejected"});
    return status;
  }
  auto active = std::make_shared<ActiveRequest>(*this, std::move(request), *std::move(context),
                                                std::move(sink), waiting_ahead);
  bool is_late = false;
  {
    absl::MutexLock lock(&mutex_);
    // Draining may have begun after Admit looked, and FailAll may have run before this request was
    // in the set.
    is_late = draining_;
    if (!is_late) requests_[active.get()] = active;
  }
  if (is_late) {
    active->Cancel();
    return ShuttingDown();
  }
  if (!pool_.Schedule([active] { active->Prepare(); })) {
    active->Cancel();
    metrics_.RequestRejected("queue_full");
    return request::WithRetryAfter(
        absl::ResourceExhaustedError("too many prompts wait for tokenization"), 1);
  }
  return active;
}

absl::StatusOr<std::vector<int32_t>> Frontend::Tokenize(
    const request::CanonicalRequest& request) const {
  APB_RETURN_IF_ERROR(request::CheckRequest(request, limits()));
  return prompts_.Encode(request);
}

absl::StatusOr<std::string> Frontend::Detokenize(const std::vector<int32_t>& ids) const {
  auto text = prompts_.tokenizer().Decode(ids, /*skip_special=*/false);
  if (!text.ok()) return request::InvalidField("tokens", base::StdView(text.status().message()));
  return text;
}

void Frontend::BeginDrain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool Frontend::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

bool Frontend::ready() const { return !draining() && groups_.ready(); }

size_t Frontend::in_flight() const {
  absl::MutexLock lock(&mutex_);
  return requests_.size();
}

bool Frontend::AwaitIdle(absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return requests_.empty(); };
  return mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline);
}

void Frontend::FailAll(const absl::Status& status) {
  std::vector<std::shared_ptr<ActiveRequest>> all;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [key, weak] : requests_) {
      if (auto request = weak.lock()) all.push_back(std::move(request));
    }
  }
  for (const auto& request : all) request->Fail(status);
}

void Frontend::Forget(const ActiveRequest* request) {
  absl::MutexLock lock(&mutex_);
  requests_.erase(request);
}

}  // namespace apb::frontend
