// Writes the JSON of contexts.
#include "server/http/context_card.h"

#include "absl/time/time.h"

namespace apb::http_api {

nlohmann::json ContextCard(const request::ContextInfo& context, const std::string& model) {
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

}  // namespace apb::http_api
