// Writes error responses.
#include "server/http/errors.h"

#include "absl/strings/str_cat.h"
#include "server/http/openai_response.h"
#include "server/request/status_map.h"

namespace apb::http_api {

Response ErrorResponse(const absl::Status& status) {
  Response response{.status = request::HttpErrorOf(status.code()).status,
                    .body = ErrorBody(status)};
  if (const int seconds = request::RetryAfterOf(status); seconds > 0) {
    response.headers.emplace_back("Retry-After", absl::StrCat(seconds));
  }
  return response;
}

Response HttpErrorResponse(int status, std::string_view message, std::string_view code) {
  return {.status = status, .body = ErrorBody(message, "invalid_request_error", code)};
}

}  // namespace apb::http_api
