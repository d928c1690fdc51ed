// The bytes of HTTP responses.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace apb::http_api {

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

struct Framing {
  bool keep_alive = true;
  bool http_1_0 = false;
  bool head = false;  // the request was HEAD: no body
  std::string request_id;
};

std::string_view ReasonPhrase(int status);
// Head and body.
std::string Serialize(const Response& response, const Framing& framing);
// The head of an event stream; its body is chunked, with HTTP/1.0 it ends with the connection.
std::string EventStreamHead(const Framing& framing);
// `data` as a chunk; with HTTP/1.0 as it is.
std::string Chunk(std::string_view data, const Framing& framing);
std::string LastChunk(const Framing& framing);

}  // namespace apb::http_api
