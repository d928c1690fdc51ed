// /v1/models: the one model that this server serves.
#include <string>
#include <vector>

#include "server/http/errors.h"
#include "server/http/route.h"

namespace apb::http_api {
namespace {

using nlohmann::json;

json ModelCard(const frontend::Frontend& frontend) {
  const std::string& model = frontend.options().model;
  return {{"id", model},
          {"object", "model"},
          {"created", frontend.start_seconds()},
          {"owned_by", "apb"},
          {"root", model},
          {"parent", nullptr},
          {"max_model_len", frontend.max_model_len()},
          {"apb", {{"strategies", frontend.groups().StrategyNames()}}}};
}

}  // namespace

Response ListModels(const Call& call) {
  const json data = json::array({ModelCard(call.frontend)});
  return {.body = json({{"object", "list"}, {"data", data}}).dump()};
}

Response DescribeModel(const Call& call) {
  if (call.id == call.frontend.options().model) return {.body = ModelCard(call.frontend).dump()};
  return HttpErrorResponse(404, "no such model", "model_not_found");
}

}  // namespace apb::http_api
