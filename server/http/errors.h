// Error responses in OpenAI's form. Pure functions.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "server/http/response.h"

namespace apb::http_api {

Response ErrorResponse(const absl::Status& status);
// For errors of HTTP itself, which no absl::Status expresses.
Response HttpErrorResponse(int status, std::string_view message, std::string_view code = "");

}  // namespace apb::http_api
