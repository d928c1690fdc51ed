// Writes the JSON that OpenAI's clients read: chunks, whole responses, usage, errors. One writer
// per request; not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "server/request/canonical_request.h"
#include "server/request/events.h"

namespace apb::http_api {

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const absl::Status& status);
// The same with an explicit type, for errors of HTTP itself.
std::string ErrorBody(std::string_view message, std::string_view type, std::string_view code);

struct ResponseHeader {
  // With its prefix: "chatcmpl-..." or "cmpl-...".
  std::string id;
  // The served name.
  std::string model;
  std::string fingerprint;
  int64_t created = 0;  // seconds since the epoch
  request::Api api = request::Api::kCompletion;
  bool include_usage = false;
  bool logprobs = false;
};

class OpenAiResponse {
 public:
  explicit OpenAiResponse(ResponseHeader header);

  // These return frames of a stream, each "data: ...\n\n".
  std::string TokenFrame(const request::TokenChunk& chunk);
  std::string ProgressFrame(const request::Progress& progress) const;
  // The last chunk, the usage if it was asked for, and [DONE].
  std::string EndFrames(const request::Completed& completed);
  static std::string ErrorFrames(const absl::Status& status);

  // For a response that is not streamed: Add collects the chunks, Whole returns the body.
  void Add(const request::TokenChunk& chunk);
  std::string Whole(const request::Completed& completed) const;

 private:
  nlohmann::json Envelope(bool chunk) const;
  nlohmann::json Choice(const nlohmann::json& logprobs) const;
  nlohmann::json Logprobs(const std::vector<request::TokenLogprob>& logprobs);
  std::string Frame(const nlohmann::json& body) const;

  const ResponseHeader header_;
  bool role_sent_ = false;
  int64_t text_offset_ = 0;  // for completions' logprobs: characters before the next token
  std::string text_;
  std::vector<request::TokenLogprob> logprobs_;
};

}  // namespace apb::http_api
