// Turns events into responses.
#include "server/http/handlers/generate.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/string_view.h"
#include "server/http/context_card.h"
#include "server/http/errors.h"

namespace apb::http_api {
namespace {

ResponseHeader HeaderOf(const Generation& generation, const std::string& request_id,
                        const std::string& model, std::string_view version, int64_t created) {
  const request::Api api = generation.request.api;
  return {.id = absl::StrCat(api == request::Api::kChat ? "chatcmpl-" : "cmpl-", request_id),
          .model = model,
          .fingerprint = absl::StrCat("apb-", base::AbslView(version)),
          .created = created,
          .api = api,
          .include_usage = generation.include_usage,
          .logprobs = generation.request.sampling.has_logprobs()};
}

}  // namespace

GenerationResponse::GenerationResponse(const Generation& generation, const std::string& request_id,
                                       const std::string& model, std::string_view version,
                                       int64_t created)
    : stream_(generation.stream),
      model_(model),
      writer_(HeaderOf(generation, request_id, model, version, created)) {}

GenerationResponse::Output GenerationResponse::Take(const std::vector<request::Event>& events) {
  Output out;
  for (const request::Event& event : events) {
    std::visit([&](const auto& one) { OnEvent(one, out); }, event);
  }
  return out;
}

// A queued request is valid, so the head of the stream is sent before the long prefill.
void GenerationResponse::OnEvent(const request::Queued&, Output& out) {
  if (!stream_ || began_) return;
  began_ = true;
  out.begins_stream = true;
}

void GenerationResponse::OnEvent(const request::Progress& progress, Output& out) {
  if (stream_) out.frames += writer_.ProgressFrame(progress);
}

void GenerationResponse::OnEvent(const request::TokenChunk& chunk, Output& out) {
  if (stream_) {
    out.frames += writer_.TokenFrame(chunk);
  } else {
    writer_.Add(chunk);
  }
}

void GenerationResponse::OnEvent(const request::Completed& completed, Output& out) {
  out.over = true;
  if (stream_) {
    out.frames += writer_.EndFrames(completed);
    return;
  }
  out.whole = Response{.body = writer_.Whole(completed)};
  out.whole->headers.emplace_back(
      "Server-Timing",
      absl::StrFormat("queue;dur=%.1f, prefill;dur=%.1f, decode;dur=%.1f",
                      1e3 * completed.queue_seconds, 1e3 * completed.prefill_seconds,
                      1e3 * completed.decode_seconds));
}

void GenerationResponse::OnEvent(const request::ContextInfo& context, Output& out) {
  out.over = true;
  out.whole = Response{.body = ContextCard(context, model_).dump()};
}

void GenerationResponse::OnEvent(const request::Failed& failed, Output& out) {
  out.over = true;
  if (began_) {
    out.frames += OpenAiResponse::ErrorFrames(failed.status);
  } else {
    out.whole = ErrorResponse(failed.status);
  }
}

}  // namespace apb::http_api
