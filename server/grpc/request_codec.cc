// Translation of the public protocol.
#include "server/grpc/request_codec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/request/admission.h"
#include "server/request/status_map.h"

namespace apb::grpc_api {
namespace {

namespace pb = inference::v1;
using request::CanonicalRequest;

request::ChatInput ToChat(const pb::ChatInput& chat) {
  request::ChatInput input;
  for (const pb::ChatMessage& message : chat.messages()) {
    input.messages.push_back({message.role(), message.content()});
  }
  return input;
}

void FillAlternative(const request::TokenAlternative& from, pb::TokenLogprob* to) {
  to->set_id(from.id);
  to->set_token(from.bytes);
  to->set_logprob(from.logprob);
}

struct EventWriter {
  const std::string& request_id;
  pb::GenerateResponse& to;

  void operator()(const request::Queued& from) {
    pb::Queued* queued = to.mutable_queued();
    queued->set_request_id(request_id);
    queued->set_position(static_cast<int32_t>(from.position));
    queued->set_prompt_tokens(from.prompt_tokens);
  }

  void operator()(const request::Progress& from) {
    pb::PrefillProgress* progress = to.mutable_progress();
    progress->set_processed_tokens(from.processed_tokens);
    progress->set_total_tokens(from.total_tokens);
    progress->set_cached_tokens(from.cached_tokens);
    progress->set_elapsed_seconds(from.elapsed_seconds);
    progress->set_eta_seconds(from.eta_seconds);
  }

  void operator()(const request::TokenChunk& from) {
    pb::TokenChunk* chunk = to.mutable_token();
    chunk->mutable_ids()->Add(from.ids.begin(), from.ids.end());
    chunk->set_text(from.text);
    for (const request::TokenLogprob& logprob : from.logprobs) {
      pb::LogprobEntry* entry = chunk->add_logprobs();
      FillAlternative(logprob.chosen, entry->mutable_chosen());
      for (const auto& top : logprob.top) FillAlternative(top, entry->add_top());
    }
  }

  void operator()(const request::Completed& from) {
    pb::Completed* completed = to.mutable_completed();
    completed->set_finish_reason(from.reason == request::FinishReason::kStop
                                     ? pb::FINISH_REASON_STOP
                                     : pb::FINISH_REASON_LENGTH);
    if (!from.stop_string.empty()) {
      completed->set_stop_reason(from.stop_string);
    } else if (from.stop_token >= 0) {
      completed->set_stop_reason(absl::StrCat(from.stop_token));
    }
    completed->mutable_usage()->set_prompt_tokens(from.prompt_tokens);
    completed->mutable_usage()->set_completion_tokens(from.completion_tokens);
    completed->mutable_usage()->set_cached_tokens(from.cached_tokens);
    completed->set_strategy(from.strategy);
    completed->set_queue_seconds(from.queue_seconds);
    completed->set_prefill_seconds(from.prefill_seconds);
    completed->set_decode_seconds(from.decode_seconds);
  }

  void operator()(const request::ContextInfo&) {}
  void operator()(const request::Failed&) {}
};

// Reads the fields that GenerateRequest and CreateContextRequest share.
template <typename Message>
absl::Status ReadPrompt(const Message& message, CanonicalRequest& request) {
  request.model = message.model();
  request.id = message.request_id();
  if (request.id.empty()) request.id = request::NewRequestId();
  if (!request::IsValidRequestId(request.id)) {
    return request::InvalidField("request_id", "must be at most 128 of [A-Za-z0-9._-]");
  }
  switch (message.input_case()) {
    case Message::kText:
      request.input = request::TextInput{message.text()};
      break;
    case Message::kTokens:
      request.input =
          request::TokenInput{{message.tokens().ids().begin(), message.tokens().ids().end()}};
      break;
    case Message::kChat:
      request.api = request::Api::kChat;
      request.input = ToChat(message.chat());
      break;
    case Message::INPUT_NOT_SET:
      return request::InvalidField("input", "one of text, tokens and chat is needed");
  }
  request.apb = message.apb();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CanonicalRequest> FromMessage(const pb::GenerateRequest& message) {
  CanonicalRequest request;
  APB_RETURN_IF_ERROR(ReadPrompt(message, request));
  request.sampling = message.sampling();
  if (message.has_context()) request.context = message.context();
  request.report_progress = message.include_progress();
  return request;
}

absl::StatusOr<CanonicalRequest> FromMessage(const pb::CreateContextRequest& message) {
  CanonicalRequest request;
  APB_RETURN_IF_ERROR(ReadPrompt(message, request));
  request.create_context = true;
  if (message.has_ttl_seconds()) request.ttl_seconds = message.ttl_seconds();
  return request;
}

absl::StatusOr<CanonicalRequest> FromMessage(const pb::TokenizeRequest& message) {
  CanonicalRequest request;
  request.model = message.model();
  if (message.has_chat()) {
    request.api = request::Api::kChat;
    request.input = ToChat(message.chat());
  } else if (message.input_case() == pb::TokenizeRequest::kText) {
    const bool special = !message.has_add_special_tokens() || message.add_special_tokens();
    request.input = request::TextInput{message.text(), special};
  } else {
    return request::InvalidField("input", "one of text and chat is needed");
  }
  return request;
}

pb::Context ToMessage(const request::ContextInfo& context, const std::string& model) {
  pb::Context message;
  message.set_id(context.id);
  message.set_model(model);
  message.set_created(absl::ToUnixSeconds(context.created));
  message.set_expires_at(absl::ToUnixSeconds(context.expires_at));
  message.set_ttl_seconds(absl::ToInt64Seconds(context.ttl));
  message.set_lost(context.is_lost);
  message.mutable_usage()->set_prompt_tokens(context.prompt_tokens);
  message.mutable_usage()->set_cached_tokens(context.cached_tokens);
  message.set_strategy(context.strategy);
  message.set_prefill_seconds(context.prefill_seconds);
  return message;
}

pb::GenerateResponse ToMessage(const request::Event& event, const std::string& request_id) {
  pb::GenerateResponse response;
  std::visit(EventWriter{request_id, response}, event);
  return response;
}

}  // namespace apb::grpc_api
