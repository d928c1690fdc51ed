// /v1/completions, /v1/chat/completions and POST /v1/contexts: what the events of a request make
// of the response. Knows no connection; one per request, not thread-safe.
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

  // What is to be written now, in this order.
  struct Output {
    bool begins_stream = false;     // the head of the event stream
    std::string frames;             // of the stream
    std::optional<Response> whole;  // instead of a stream; nothing follows
    bool over = false;              // the stream ends behind these frames
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
  bool began_ = false;  // the head of the event stream is out
};

}  // namespace apb::http_api
