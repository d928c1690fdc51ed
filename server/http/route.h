// The table of endpoints: one row for each path and method, with its handler. A new endpoint needs
// a file in handlers/ and a row in route.cc.
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

// A request as its handler sees it. The references are valid until the handler has returned.
struct Call {
  frontend::Frontend& frontend;
  const std::string& body;
  const std::string& id;     // the part of the path at {id}, percent-decoded
  const std::string& owner;  // whose contexts the sender may use; see request::OwnerOf
  std::string_view version;  // of the server
};

// There are three kinds of handlers. An Answer responds at once, on the connection's thread.
using Answer = Response (*)(const Call& call);
// Text work; it runs on the text pool when the body is big.
struct SlowAnswer {
  Answer answer;
};
// Reads a request for a worker group, whose events become the response (handlers/generate.h).
using Parse = absl::StatusOr<Generation> (*)(const nlohmann::json& body);

struct Route {
  std::string_view methods;  // as the Allow header lists them
  std::string_view path;     // "{id}" at the end stands for any text that is not empty
  bool needs_key = true;
  std::variant<Answer, SlowAnswer, Parse> handler;
};

std::span<const Route> Routes();

// The row of the table to which a request's path and method lead.
struct RouteMatch {
  std::string_view path = "unknown";  // of the table; metrics use it as a label
  bool needs_key = true;
  std::string id;  // as in Call
  // Null if the path does not exist or does not take the method.
  const Route* route = nullptr;
};
// `path` has no query string (no "?..." at its end).
RouteMatch FindRoute(std::string_view path, std::string_view method);

// The response where `match.route` is null: 404 with all paths, or 405 with an Allow header.
Response NoRouteResponse(const RouteMatch& match, std::string_view method);

}  // namespace apb::http_api
