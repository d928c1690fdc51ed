// The JSON that describes a context to clients.
#pragma once

#include <string>

#include "nlohmann/json.hpp"
#include "server/request/events.h"

namespace apb::http_api {

// `model`: the served name.
nlohmann::json ContextCard(const request::ContextInfo& context, const std::string& model);

}  // namespace apb::http_api
