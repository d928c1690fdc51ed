// Responses that tell of an error, in OpenAI's form. Pure functions.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "server/http/response.h"

namespace apb::http_api {

Response ErrorResponse(const absl::Status& status);
// With a status of HTTP's own.
Response HttpErrorResponse(int status, std::string_view message, std::string_view code = "");

}  // namespace apb::http_api
