// /metrics: the text that Prometheus reads.
#include "server/http/route.h"

namespace apb::http_api {

Response MetricsText(const Call& call) {
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = call.frontend.metrics().Serialize()};
}

}  // namespace apb::http_api
