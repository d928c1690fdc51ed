// Writes OpenAI's responses.
#include "server/http/openai_response.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;
using request::Api;

// A token may be a part of a UTF-8 character; such bytes become U+FFFD.
std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json UsageOf(const request::Completed& completed) {
  return {{"prompt_tokens", completed.prompt_tokens},
          {"completion_tokens", completed.completion_tokens},
          {"total_tokens", completed.prompt_tokens + completed.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", completed.cached_tokens}}}};
}

// The fields of llama.cpp's `timings`, and in addition our queue time and the strategy that was
// used.
json TimingsOf(const request::Completed& c) {
  const double prompt = static_cast<double>(c.prompt_tokens - c.cached_tokens);
  const double predicted = static_cast<double>(c.completion_tokens);
  auto rate = [](double count, double seconds) { return seconds > 0 ? count / seconds : 0; };
  return {{"cache_n", c.cached_tokens},
          {"prompt_n", c.prompt_tokens - c.cached_tokens},
          {"prompt_ms", 1e3 * c.prefill_seconds},
          {"prompt_per_token_ms", rate(1e3 * c.prefill_seconds, prompt)},
          {"prompt_per_second", rate(prompt, c.prefill_seconds)},
          {"predicted_n", c.completion_tokens},
          {"predicted_ms", 1e3 * c.decode_seconds},
          {"predicted_per_token_ms", rate(1e3 * c.decode_seconds, predicted)},
          {"predicted_per_second", rate(predicted, c.decode_seconds)},
          {"queue_ms", 1e3 * c.queue_seconds},
          {"strategy", c.strategy}};
}

std::string_view NameOf(request::FinishReason reason) {
  return reason == request::FinishReason::kStop ? "stop" : "length";
}

json StopReasonOf(const request::Completed& completed) {
  if (!completed.stop_string.empty()) return completed.stop_string;
  if (completed.stop_token >= 0) return completed.stop_token;
  return nullptr;
}

json BytesOf(const std::string& bytes) {
  json list = json::array();
  for (unsigned char byte : bytes) list.push_back(byte);
  return list;
}

json ChatAlternative(const request::TokenAlternative& token) {
  return {{"token", token.bytes}, {"logprob", token.logprob}, {"bytes", BytesOf(token.bytes)}};
}

json ChatLogprobs(const std::vector<request::TokenLogprob>& logprobs) {
  json content = json::array();
  for (const request::TokenLogprob& entry : logprobs) {
    json token = ChatAlternative(entry.chosen);
    json& top = token["top_logprobs"] = json::array();
    for (const auto& alternative : entry.top) top.push_back(ChatAlternative(alternative));
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

json CompletionLogprobs(const std::vector<request::TokenLogprob>& logprobs, int64_t* offset) {
  json tokens = json::array(), chosen = json::array(), top = json::array(), offsets = json::array();
  for (const request::TokenLogprob& entry : logprobs) {
    tokens.push_back(entry.chosen.bytes);
    chosen.push_back(entry.chosen.logprob);
    json alternatives = json::object();
    for (const auto& alternative : entry.top) alternatives[alternative.bytes] = alternative.logprob;
    alternatives[entry.chosen.bytes] = entry.chosen.logprob;
    top.push_back(std::move(alternatives));
    offsets.push_back(*offset);
    for (unsigned char byte : entry.chosen.bytes) *offset += (byte & 0xc0) != 0x80;
  }
  return {{"tokens", tokens},
          {"token_logprobs", chosen},
          {"top_logprobs", top},
          {"text_offset", offsets}};
}

}  // namespace

std::string ErrorBody(const absl::Status& status) {
  const std::string field = request::FieldOf(status);
  const std::string code = request::ErrorCodeOf(status);
  return Dump({{"error",
                {{"message", std::string(status.message())},
                 {"type", request::HttpErrorOf(status.code()).type},
                 {"param", field.empty() ? json(nullptr) : json(field)},
                 {"code", code.empty() ? json(nullptr) : json(code)}}}});
}

std::string ErrorBody(std::string_view message, std::string_view type, std::string_view code) {
  return Dump({{"error",
                {{"message", message},
                 {"type", type},
                 {"param", nullptr},
                 {"code", code.empty() ? json(nullptr) : json(code)}}}});
}

OpenAiResponse::OpenAiResponse(ResponseHeader header) : header_(std::move(header)) {}

json OpenAiResponse::Envelope(bool chunk) const {
  const bool chat = header_.api == Api::kChat;
  return {{"id", header_.id},
          {"object", !chat   ? "text_completion"
                     : chunk ? "chat.completion.chunk"
                             : "chat.completion"},
          {"created", header_.created},
          {"model", header_.model},
          {"system_fingerprint", header_.fingerprint}};
}

json OpenAiResponse::Logprobs(const std::vector<request::TokenLogprob>& logprobs) {
  if (!header_.logprobs) return nullptr;
  return header_.api == Api::kChat ? ChatLogprobs(logprobs)
                                   : CompletionLogprobs(logprobs, &text_offset_);
}

json OpenAiResponse::Choice(const json& logprobs) const {
  return {{"index", 0}, {"logprobs", logprobs}, {"finish_reason", nullptr}};
}

std::string OpenAiResponse::Frame(const json& body) const {
  return absl::StrCat("data: ", Dump(body), "\n\n");
}

std::string OpenAiResponse::TokenFrame(const request::TokenChunk& chunk) {
  json body = Envelope(/*chunk=*/true);
  json choice = Choice(Logprobs(chunk.logprobs));
  if (header_.api == Api::kChat) {
    json& delta = choice["delta"] = {{"content", chunk.text}};
    // The role comes with the first text, because benchmarks take the first chunk for the first
    // token.
    if (!role_sent_) delta["role"] = "assistant";
    role_sent_ = true;
  } else {
    choice["text"] = chunk.text;
  }
  body["choices"] = json::array({std::move(choice)});
  if (header_.include_usage) body["usage"] = nullptr;
  return Frame(body);
}

std::string OpenAiResponse::ProgressFrame(const request::Progress& progress) const {
  json body = Envelope(/*chunk=*/true);
  body["choices"] = json::array();
  body["apb_progress"] = {{"phase", "prefill"},
                          {"processed_tokens", progress.processed_tokens},
                          {"total_tokens", progress.total_tokens},
                          {"cached_tokens", progress.cached_tokens},
                          {"elapsed_seconds", progress.elapsed_seconds},
                          {"eta_seconds", progress.eta_seconds}};
  body["prompt_progress"] = {{"total", progress.total_tokens},
                             {"cache", progress.cached_tokens},
                             {"processed", progress.processed_tokens},
                             {"time_ms", static_cast<int64_t>(1e3 * progress.elapsed_seconds)}};
  if (header_.include_usage) body["usage"] = nullptr;
  return Frame(body);
}

std::string OpenAiResponse::EndFrames(const request::Completed& completed) {
  json body = Envelope(/*chunk=*/true);
  json choice = Choice(nullptr);
  choice["finish_reason"] = NameOf(completed.reason);
  choice["stop_reason"] = StopReasonOf(completed);
  if (header_.api == Api::kChat) {
    choice["delta"] = json::object();
    if (!role_sent_) choice["delta"] = {{"role", "assistant"}, {"content", ""}};
    role_sent_ = true;
  } else {
    choice["text"] = "";
  }
  body["choices"] = json::array({std::move(choice)});
  body["timings"] = TimingsOf(completed);
  if (header_.include_usage) body["usage"] = nullptr;
  std::string frames = Frame(body);
  if (header_.include_usage) {
    json usage = Envelope(/*chunk=*/true);
    usage["choices"] = json::array();
    usage["usage"] = UsageOf(completed);
    frames += Frame(usage);
  }
  return frames + "data: [DONE]\n\n";
}

std::string OpenAiResponse::ErrorFrames(const absl::Status& status) {
  return absl::StrCat("data: ", ErrorBody(status), "\n\ndata: [DONE]\n\n");
}

void OpenAiResponse::Add(const request::TokenChunk& chunk) {
  text_ += chunk.text;
  logprobs_.insert(logprobs_.end(), chunk.logprobs.begin(), chunk.logprobs.end());
}

std::string OpenAiResponse::Whole(const request::Completed& completed) const {
  json body = Envelope(/*chunk=*/false);
  int64_t offset = 0;
  json logprobs;
  if (header_.logprobs) {
    logprobs = header_.api == Api::kChat ? ChatLogprobs(logprobs_)
                                         : CompletionLogprobs(logprobs_, &offset);
  }
  json choice = Choice(logprobs);
  choice["finish_reason"] = NameOf(completed.reason);
  choice["stop_reason"] = StopReasonOf(completed);
  if (header_.api == Api::kChat) {
    choice["message"] = {{"role", "assistant"}, {"content", text_}, {"refusal", nullptr}};
  } else {
    choice["text"] = text_;
  }
  body["choices"] = json::array({std::move(choice)});
  body["usage"] = UsageOf(completed);
  body["timings"] = TimingsOf(completed);
  return Dump(body);
}

}  // namespace apb::http_api
