// /health, /readyz, /livez, /version: whether a request would be computed, and by which version.
#include "server/http/errors.h"
#include "server/http/route.h"
#include "server/request/status_map.h"

namespace apb::http_api {

Response Health(const Call& call) {
  if (call.frontend.ready()) return {.body = R"({"status":"ok"})"};
  return ErrorResponse(request::WithRetryAfter(
      absl::UnavailableError(call.frontend.draining() ? "the server is shutting down"
                                                      : call.frontend.groups().absence()),
      2));
}

Response Live(const Call&) { return {.body = R"({"status":"alive"})"}; }

Response Version(const Call& call) {
  return {.body = nlohmann::json({{"version", call.version}}).dump()};
}

}  // namespace apb::http_api
