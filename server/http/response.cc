// Writes HTTP/1.1.
#include "server/http/response.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace apb::http_api {
namespace {

std::string CommonHeaders(const Framing& framing) {
  std::string text = framing.keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  if (!framing.request_id.empty())
    absl::StrAppend(&text, "x-request-id: ", framing.request_id, "\r\n");
  return text;
}

}  // namespace

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Payload Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Internal Server Error";
  }
}

std::string Serialize(const Response& response, const Framing& framing) {
  std::string text =
      absl::StrFormat("HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s",
                      response.status, ReasonPhrase(response.status), response.content_type,
                      response.body.size(), CommonHeaders(framing));
  for (const auto& [name, value] : response.headers)
    absl::StrAppend(&text, name, ": ", value, "\r\n");
  absl::StrAppend(&text, "\r\n", framing.head ? "" : response.body);
  return text;
}

std::string EventStreamHead(const Framing& framing) {
  return absl::StrCat(
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: "
      "no-cache\r\n"
      "X-Accel-Buffering: no\r\n",
      framing.http_1_0 ? "" : "Transfer-Encoding: chunked\r\n", CommonHeaders(framing), "\r\n");
}

std::string Chunk(std::string_view data, const Framing& framing) {
  if (framing.http_1_0) return std::string(data);
  return absl::StrFormat("%x\r\n%s\r\n", data.size(), data);
}

std::string LastChunk(const Framing& framing) { return framing.http_1_0 ? "" : "0\r\n\r\n"; }

}  // namespace apb::http_api
