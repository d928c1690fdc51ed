// Writing the answers.
#include "server/http/answers.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/string_view.h"
#include "nlohmann/json.hpp"
#include "server/http/openai_response.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;

json ModelCard(const frontend::Frontend& frontend) {
  const std::string& model = frontend.options().model;
  const auto& strategies = request::kStrategyNames;
  return {
      {"id", model},
      {"object", "model"},
      {"created", frontend.start_seconds()},
      {"owned_by", "apb"},
      {"root", model},
      {"parent", nullptr},
      {"max_model_len", frontend.max_model_len()},
      {"apb", {{"strategies", std::vector<std::string>(strategies.begin(), strategies.end())}}}};
}

json ContextCard(const request::ContextInfo& context, const std::string& model) {
  return {{"id", context.id},
          {"object", "context"},
          {"created", absl::ToUnixSeconds(context.created)},
          {"expires_at", absl::ToUnixSeconds(context.expires_at)},
          {"ttl_seconds", absl::ToInt64Seconds(context.ttl)},
          {"model", model},
          {"status", context.is_lost ? "lost" : "ready"},
          {"strategy", context.strategy},
          {"prefill_seconds", context.prefill_seconds},
          {"usage",
           {{"prompt_tokens", context.prompt_tokens},
            {"completion_tokens", 0},
            {"total_tokens", context.prompt_tokens},
            {"prompt_tokens_details", {{"cached_tokens", context.cached_tokens}}}}}};
}

Response Health(const frontend::Frontend& frontend) {
  if (frontend.ready()) return {.body = R"({"status":"ok"})"};
  return ErrorResponse(request::WithRetryAfter(
      absl::UnavailableError(frontend.draining() ? "the server is shutting down"
                                                 : frontend.groups().absence()),
      2));
}

Response AnswerContext(const NowRequest& request, frontend::Frontend& frontend) {
  const std::string id = IdOf(request.path);
  if (!request.is_delete) {
    const auto context = frontend.contexts().Describe(request.owner, id);
    if (!context.ok()) return ErrorResponse(context.status());
    return ContextResponse(*context, frontend.options().model);
  }
  const absl::Status status = frontend.contexts().Delete(request.owner, id);
  if (!status.ok()) return ErrorResponse(status);
  return {.body = json({{"id", id}, {"object", "context.deleted"}, {"deleted", true}}).dump()};
}

Response List(json data) {
  return {.body = json({{"object", "list"}, {"data", std::move(data)}}).dump()};
}

}  // namespace

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

Response ContextResponse(const request::ContextInfo& context, const std::string& model) {
  return {.body = ContextCard(context, model).dump()};
}

Response AnswerNow(const NowRequest& request, frontend::Frontend& frontend) {
  const std::string& model = frontend.options().model;
  switch (request.route) {
    case Route::kModels:
      return List(json::array({ModelCard(frontend)}));
    case Route::kModel:
      if (IdOf(request.path) == model) return {.body = ModelCard(frontend).dump()};
      return HttpErrorResponse(404, "no such model", "model_not_found");
    case Route::kContexts: {
      json data = json::array();
      for (const auto& context : frontend.contexts().List(request.owner))
        data.push_back(ContextCard(context, model));
      return List(std::move(data));
    }
    case Route::kContext:
      return AnswerContext(request, frontend);
    case Route::kHealth:
      return Health(frontend);
    case Route::kLive:
      return {.body = R"({"status":"alive"})"};
    case Route::kVersion:
      return {.body = json({{"version", request.version}}).dump()};
    case Route::kMetrics:
      return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
              .body = frontend.metrics().Serialize()};
    default:
      return HttpErrorResponse(
          404,
          "no such path; see /v1/completions, /v1/chat/completions, /v1/contexts, /v1/models, "
          "/tokenize, /detokenize, /health, /metrics");
  }
}

}  // namespace apb::http_api
