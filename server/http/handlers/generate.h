// Turns a request's events into the response of /v1/completions, /v1/chat/completions or POST
// /v1/contexts. Knows no connection. One object per request; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/openai_codec.h"
#include "server/http/openai_response.h"
#include "server/http/response.h"
#include "server/request/events.h"

namespace apb::http_api {

class GenerationResponse {
 public:
  // `model`: the served name. `version`: of the server. `created`: seconds since the epoch.
  GenerationResponse(const Generation& generation, const std::string& request_id,
                     const std::string& model, std::string_view version, int64_t created);

  // What the connection writes next, in this order.
  struct Output {
    bool begins_stream = false;  // write the head of the event stream
    std::string frames;          // write these frames of the stream
    // Write this response instead of a stream; nothing follows.
    std::optional<Response> whole;
    bool over = false;  // the stream ends after these frames
  };
  Output Take(const std::vector<request::Event>& events);

 private:
  void OnEvent(const request::Queued& queued, Output& out);
  void OnEvent(const request::Progress& progress, Output& out);
  void OnEvent(const request::TokenChunk& chunk, Output& out);
  void OnEvent(const request::Completed& completed, Output& out);
  void OnEvent(const request::ContextInfo& context, Output& out);
  void OnEvent(const request::Failed& failed, Output& out);

  const bool stream_;
  const std::string model_;
  OpenAiResponse writer_;
  bool began_ = false;  // the head of the event stream was written
};

}  // namespace apb::http_api
