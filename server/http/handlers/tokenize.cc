// /tokenize and /detokenize, with vLLM's requests and responses.
#include <cstdint>
#include <vector>

#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/http/errors.h"
#include "server/http/route.h"

namespace apb::http_api {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<int32_t>> TokensOf(const Call& call) {
  APB_ASSIGN_OR_RETURN(const json body, base::ParseJsonObject(call.body, "the body"));
  APB_ASSIGN_OR_RETURN(const request::CanonicalRequest request, ParseTokenize(body));
  return call.frontend.Tokenize(request);
}

absl::StatusOr<std::string> TextOf(const Call& call) {
  APB_ASSIGN_OR_RETURN(const json body, base::ParseJsonObject(call.body, "the body"));
  APB_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseDetokenize(body));
  return call.frontend.Detokenize(ids);
}

}  // namespace

Response Tokenize(const Call& call) {
  const absl::StatusOr<std::vector<int32_t>> ids = TokensOf(call);
  if (!ids.ok()) return ErrorResponse(ids.status());
  return {.body = json({{"count", ids->size()},
                        {"max_model_len", call.frontend.max_model_len()},
                        {"tokens", *ids},
                        {"token_strs", nullptr}})
                      .dump()};
}

Response Detokenize(const Call& call) {
  const absl::StatusOr<std::string> text = TextOf(call);
  if (!text.ok()) return ErrorResponse(text.status());
  return {.body = json({{"prompt", *text}}).dump(-1, ' ', false, json::error_handler_t::replace)};
}

}  // namespace apb::http_api
