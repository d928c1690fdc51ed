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

// How a response is sent; follows from the request.
struct Framing {
  bool keep_alive = true;
  bool http_1_0 = false;
  bool head = false;  // the request was HEAD: send no body
  std::string request_id;
};

std::string_view ReasonPhrase(int status);
// Returns head and body.
std::string Serialize(const Response& response, const Framing& framing);
// Returns the head of an event stream. Its body is chunked; with HTTP/1.0 it ends with the
// connection.
std::string EventStreamHead(const Framing& framing);
// Returns `data` as a chunk, or unchanged with HTTP/1.0.
std::string Chunk(std::string_view data, const Framing& framing);
std::string LastChunk(const Framing& framing);

}  // namespace apb::http_api
