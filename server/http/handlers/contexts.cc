// /v1/contexts: lists, describes and deletes contexts. Creating one is a generation (generate.h).
#include "server/http/context_card.h"
#include "server/http/errors.h"
#include "server/http/route.h"

namespace apb::http_api {

using nlohmann::json;

Response ListContexts(const Call& call) {
  json data = json::array();
  for (const request::ContextInfo& context : call.frontend.contexts().List(call.owner)) {
    data.push_back(ContextCard(context, call.frontend.options().model));
  }
  return {.body = json({{"object", "list"}, {"data", std::move(data)}}).dump()};
}

Response DescribeContext(const Call& call) {
  const auto context = call.frontend.contexts().Describe(call.owner, call.id);
  if (!context.ok()) return ErrorResponse(context.status());
  return {.body = ContextCard(*context, call.frontend.options().model).dump()};
}

Response DeleteContext(const Call& call) {
  const absl::Status status = call.frontend.contexts().Delete(call.owner, call.id);
  if (!status.ok()) return ErrorResponse(status);
  return {.body = json({{"id", call.id}, {"object", "context.deleted"}, {"deleted", true}}).dump()};
}

}  // namespace apb::http_api
