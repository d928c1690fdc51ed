// The table of what the HTTP side answers: one row for each kind of request, with its handler.
// An endpoint is a file in handlers/ and a row in route.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/frontend/frontend.h"
#include "server/http/openai_codec.h"
#include "server/http/response.h"

namespace apb::http_api {

// A request as its handler sees it. What it refers to lives until the handler has returned.
struct Call {
  frontend::Frontend& frontend;
  const std::string& body;
  const std::string& id;     // what the path has in place of {id}, percent-decoded
  const std::string& owner;  // of contexts: who has sent the request
  std::string_view version;  // of the server
};

// A handler is one of three.
// Answers at once, on the connection's thread.
using Answer = Response (*)(const Call& call);
// Text work: on the text pool when the body is big.
struct SlowAnswer {
  Answer answer;
};
// Reads a request for a worker group. Its events become the response (handlers/generate.h).
using Parse = absl::StatusOr<Generation> (*)(const nlohmann::json& body);

struct Route {
  std::string_view methods;  // as the Allow header has them
  std::string_view path;     // {id} at its end: anything that is not empty
  bool needs_key = true;
  std::variant<Answer, SlowAnswer, Parse> handler;
};

std::span<const Route> Routes();

// Where a request's path and method lead.
struct RouteMatch {
  std::string_view path = "unknown";  // of the table, as metrics have it
  bool needs_key = true;
  std::string id;                // as in Call
  const Route* route = nullptr;  // null: there is no such path, or it does not take the method
};
// `path` without what follows a question mark.
RouteMatch FindRoute(std::string_view path, std::string_view method);

// The answer where `match.route` is null: 404 with the paths that there are, or 405 with Allow.
Response NoRouteResponse(const RouteMatch& match, std::string_view method);

}  // namespace apb::http_api
