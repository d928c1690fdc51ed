// A context as clients read it.
#pragma once

#include <string>

#include "nlohmann/json.hpp"
#include "server/request/events.h"

namespace apb::http_api {

// `model`: the served name.
nlohmann::json ContextCard(const request::ContextInfo& context, const std::string& model);

}  // namespace apb::http_api
