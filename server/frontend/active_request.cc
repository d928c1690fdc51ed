// The life of a request, from its text work to its last event.
#include "server/frontend/active_request.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/frontend/frontend.h"
#include "server/request/status_map.h"

namespace apb::frontend {
namespace {

// Translates the worker's end of a sequence into the status that the client gets.
absl::Status StatusOfEnd(const cluster::v1::SequenceEnd& end) {
  auto code = static_cast<absl::StatusCode>(end.status_code());
  std::string message = end.message();
  if (end.reason() == cluster::v1::END_REASON_CANCELLED) {
    code = absl::StatusCode::kUnavailable;
    message = "the worker group is shutting down";
  }
  if (code == absl::StatusCode::kOk) code = absl::StatusCode::kInternal;
  if (message.empty()) message = "the worker gave no reason";
  absl::Status status(code, message);
  if (code == absl::StatusCode::kNotFound)
    status = request::WithErrorCode(std::move(status), "context_not_found");
  const bool later =
      code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted;
  return later ? request::WithRetryAfter(std::move(status), 2) : status;
}

}  // namespace

ActiveRequest::ActiveRequest(Frontend& frontend, request::CanonicalRequest request,
                             std::shared_ptr<const contexts::Context> context,
                             std::shared_ptr<request::EventSink> sink, int64_t waiting_ahead)
    : frontend_(frontend),
      request_(std::move(request)),
      context_(std::move(context)),
      sink_(std::move(sink)),
      waiting_ahead_(waiting_ahead),
      has_place_(request_.create_context) {}

void ActiveRequest::Cancel() {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) return;
  Finish("cancelled", {}, "client");
}

void ActiveRequest::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (state_ != State::kDone) FailLocked(status);
}

void ActiveRequest::Prepare() {
  {
    absl::MutexLock lock(&mutex_);
    if (state_ == State::kDone) return;  // it was cancelled while it waited for the pool
  }
  const absl::Time begin = absl::Now();
  contexts::Context created;
  const absl::StatusOr<text::PromptSplit> prompt = PrepareText(created);
  frontend_.metrics().TextWork(absl::ToDoubleSeconds(absl::Now() - begin));
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) return;
  created_ = std::move(created);
  const absl::Status status = prompt.ok() ? Submit(*prompt) : prompt.status();
  if (!status.ok()) FailLocked(status);
}

absl::StatusOr<text::PromptSplit> ActiveRequest::PrepareText(contexts::Context& created) const {
  const PromptProcessor& model = frontend_.prompts();
  if (!request_.create_context) return model.Prepare(request_, context_.get());
  const int64_t ttl = std::min(contexts::ContextStore::kDefaultTtlSeconds,
                               frontend_.contexts().options().max_ttl_seconds);
  created.id = absl::StrCat("ctx-", request::NewRequestId());
  created.owner = request_.owner;
  created.created = absl::Now();
  created.ttl = absl::Seconds(request_.ttl_seconds.value_or(ttl));
  created.apb = request_.apb;
  APB_RETURN_IF_ERROR(model.PrepareContext(request_, created));
  return created.prompt;
}

cluster::v1::Submit ActiveRequest::MakeSubmit(const text::PromptSplit& prompt,
                                              int64_t budget) const {
  cluster::v1::Submit submit;
  const int64_t length = static_cast<int64_t>(prompt.tokens.size());
  // Only the server knows strings (stop strings, the query); workers see token ids.
  *submit.mutable_sampling() = request_.sampling;
  submit.mutable_sampling()->set_max_tokens(static_cast<int32_t>(budget));
  submit.mutable_sampling()->clear_stop();
  *submit.mutable_apb() = request_.apb;
  submit.mutable_apb()->clear_query();
  submit.mutable_tokens()->Add(prompt.tokens.begin(), prompt.tokens.end());
  submit.set_query_begin(std::clamp<int64_t>(prompt.query_begin, 0, length - 1));
  submit.set_query_insert_position(prompt.query_insert_position);
  submit.mutable_embedded_query()->Add(prompt.embedded_query.begin(), prompt.embedded_query.end());
  // The first report ends the waiting, also when the client wants no progress.
  submit.set_report_progress(true);
  submit.set_keep(request_.create_context);
  if (context_ != nullptr) submit.set_context(context_->sequence);
  return submit;
}

absl::Status ActiveRequest::Submit(const text::PromptSplit& prompt) {
  prompt_tokens_ = static_cast<int64_t>(prompt.tokens.size());
  if (prompt_tokens_ == 0) return request::InvalidField("prompt", "has no tokens");
  APB_ASSIGN_OR_RETURN(const int64_t budget, request::CompletionBudget(request_, prompt_tokens_,
                                                                       frontend_.max_model_len()));
  APB_RETURN_IF_ERROR(frontend_.load_.AddTokens(prompt_tokens_));
  waiting_tokens_ = prompt_tokens_;
  APB_ASSIGN_OR_RETURN(auto stream, request::TokenStream::Create(frontend_.prompts().tokenizer(),
                                                                 request_.sampling));
  stream_.emplace(std::move(stream));

  group_ = context_ != nullptr ? context_->group : frontend_.groups_.Pick(prompt_tokens_ + budget);
  if (group_ == nullptr) {
    return request::WithRetryAfter(absl::UnavailableError("no worker group is ready"), 2);
  }
  state_ = State::kWaiting;
  submitted_ = absl::Now();
  created_.group = group_;
  Emit(request::Queued{.position = waiting_ahead_, .prompt_tokens = prompt_tokens_});
  // Nobody would hear the group.
  if (state_ == State::kDone) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(sequence_, group_->Submit(MakeSubmit(prompt, budget), shared_from_this()));
  return absl::OkStatus();
}

void ActiveRequest::StartRunning() {
  if (state_ != State::kWaiting) return;
  state_ = State::kRunning;
  frontend_.load_.StartRunning(waiting_tokens_);
  waiting_tokens_ = 0;
}

void ActiveRequest::Emit(request::Event event) {
  if (!sink_->OnEvent(std::move(event))) CutOff();
}

void ActiveRequest::CutOff() {
  frontend_.metrics().SlowReader();
  Finish("cancelled", {}, "slow reader");
}

void ActiveRequest::OnProgress(const cluster::v1::SequenceProgress& progress) {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) return;
  StartRunning();
  cached_tokens_ = progress.cached_tokens();
  strategy_ = progress.strategy();
  queue_seconds_ = progress.queue_seconds();
  if (!request_.report_progress) return;
  Emit(request::Progress{.processed_tokens = progress.processed_tokens(),
                         .total_tokens = progress.total_tokens(),
                         .cached_tokens = progress.cached_tokens(),
                         .elapsed_seconds = progress.elapsed_seconds(),
                         .eta_seconds = progress.eta_seconds()});
}

void ActiveRequest::OnToken(const cluster::v1::TokenEvent& token) {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) return;
  StartRunning();
  const absl::Time now = absl::Now();
  if (first_token_ == absl::InfinitePast()) {
    first_token_ = now;
    frontend_.metrics().FirstToken(absl::ToDoubleSeconds(now - request_.arrival));
  } else {
    frontend_.metrics().InterToken(absl::ToDoubleSeconds(now - last_token_));
  }
  last_token_ = now;
  request::TokenChunk chunk = stream_->Push(token);
  const bool stopped = stream_->stopped();
  if (!chunk.ids.empty()) Emit(std::move(chunk));
  if (!stopped || state_ == State::kDone) return;
  // The worker does not know stop strings; Finish cancels the sequence there.
  Complete({.reason = request::FinishReason::kStop,
            .stop_string = stream_->stop_string(),
            .queue_seconds = queue_seconds_,
            .prefill_seconds = absl::ToDoubleSeconds(first_token_ - submitted_) - queue_seconds_,
            .decode_seconds = absl::ToDoubleSeconds(now - first_token_)});
}

void ActiveRequest::OnEnd(const cluster::v1::SequenceEnd& end) {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) {
    // The request was cancelled while this message was on its way, so nobody else gives up the kept
    // KV.
    if (request_.create_context) created_.group->Release(sequence_);
    return;
  }
  group_ = nullptr;  // the sequence has ended: there is nothing to cancel
  strategy_ = end.strategy();
  const bool by_stop = end.reason() == cluster::v1::END_REASON_STOP_TOKEN;
  if (!by_stop && end.reason() != cluster::v1::END_REASON_LENGTH) {
    FailLocked(StatusOfEnd(end));
    return;
  }
  if (request_.create_context) return KeepContext(end);
  if (std::string rest = stream_->Flush(); !rest.empty()) {
    request::TokenChunk chunk;
    chunk.text = std::move(rest);
    Emit(std::move(chunk));
    if (state_ == State::kDone) return;
  }
  Complete({.reason = by_stop ? request::FinishReason::kStop : request::FinishReason::kLength,
            .stop_token = stream_->stop_token(),
            .strategy = end.strategy(),
            .queue_seconds = end.queue_seconds(),
            .prefill_seconds = end.prefill_seconds(),
            .decode_seconds = end.decode_seconds()});
}

void ActiveRequest::KeepContext(const cluster::v1::SequenceEnd& end) {
  created_.cached_tokens = end.cached_tokens();
  created_.strategy = end.strategy();
  created_.prefill_seconds = end.prefill_seconds();
  created_.sequence = sequence_;
  cached_tokens_ = end.cached_tokens();
  has_place_ = false;
  if (!sink_->OnEvent(frontend_.contexts().Add(std::move(created_)))) {
    frontend_.metrics().SlowReader();
  }
  Finish("ok",
         {.strategy = end.strategy(),
          .queue_seconds = end.queue_seconds(),
          .prefill_seconds = end.prefill_seconds()},
         "context");
}

void ActiveRequest::OnLost(const std::string& why) {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kDone) return;
  group_ = nullptr;
  const bool before_first_token = first_token_ == absl::InfinitePast();
  const std::string message =
      absl::StrCat("the worker group was lost (", why, "); try the request again");
  FailLocked(request::WithRetryAfter(
      before_first_token ? absl::UnavailableError(message) : absl::AbortedError(message), 2));
}

void ActiveRequest::Complete(request::Completed completed) {
  completed.prompt_tokens = prompt_tokens_;
  completed.cached_tokens = cached_tokens_;
  completed.completion_tokens = stream_->token_count();
  if (completed.strategy.empty()) completed.strategy = strategy_;
  if (!sink_->OnEvent(completed)) return CutOff();
  Finish("ok", completed, completed.reason == request::FinishReason::kStop ? "stop" : "length");
}

void ActiveRequest::FailLocked(const absl::Status& status) {
  sink_->OnEvent(request::Failed{status});
  const bool refused = state_ == State::kText;
  if (refused) frontend_.metrics().RequestRejected(request::RejectionReason(status));
  Finish(refused ? "rejected" : "error", {}, base::StdView(status.message()));
}

void ActiveRequest::Finish(std::string_view outcome, const request::Completed& completed,
                           std::string_view detail) {
  if (group_ != nullptr && sequence_ != 0) group_->Cancel(sequence_);
  group_ = nullptr;
  if (has_place_) frontend_.contexts().Unreserve();
  has_place_ = false;
  if (state_ == State::kRunning) {
    frontend_.load_.EndRunning();
  } else {
    frontend_.load_.EndWaiting(waiting_tokens_);
  }
  state_ = State::kDone;
  const int64_t generated = stream_.has_value() ? stream_->token_count() : 0;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - request_.arrival);
  frontend_.metrics().RequestFinished(
      {.outcome = outcome,
       .finish_reason = outcome == "ok" ? detail : std::string_view(),
       .strategy = completed.strategy,
       .prompt_tokens = prompt_tokens_,
       .cached_tokens = cached_tokens_,
       .generated_tokens = generated,
       .duration_seconds = seconds,
       .queue_seconds = completed.queue_seconds,
       .prefill_seconds = completed.prefill_seconds,
       .decode_seconds = completed.decode_seconds});
  APB_LOG(Info, "request id=", request_.id, " outcome=", base::AbslView(outcome), " detail=\"",
          base::AbslView(detail), "\" prompt_tokens=", prompt_tokens_,
          " generated_tokens=", generated, " strategy=", completed.strategy,
          " queue_s=", completed.queue_seconds, " prefill_s=", completed.prefill_seconds,
          " decode_s=", completed.decode_seconds, " total_s=", seconds);
  frontend_.Forget(this);
}

}  // namespace apb::frontend
