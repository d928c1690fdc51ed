// Answers that need no worker: errors, the model's card, health, contexts. From any thread.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "server/frontend/frontend.h"
#include "server/http/response.h"
#include "server/http/route.h"

namespace apb::http_api {

Response ErrorResponse(const absl::Status& status);
// With a status of HTTP's own.
Response HttpErrorResponse(int status, std::string_view message, std::string_view code = "");
Response ContextResponse(const request::ContextInfo& context, const std::string& model);

struct NowRequest {
  Route route = Route::kUnknown;
  bool is_delete = false;
  std::string_view path;
  std::string_view owner;    // of contexts
  std::string_view version;  // of the server
};
// GET of any path (an unknown one too), DELETE of a context.
Response AnswerNow(const NowRequest& request, frontend::Frontend& frontend);

}  // namespace apb::http_api
