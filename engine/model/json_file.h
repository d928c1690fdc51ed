// Small JSON files that strangers wrote (configuration, shard index): read with limits on size and
// nesting.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::model {

// The bytes of a file of at most max_bytes; kNotFound if it cannot be opened.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// A JSON object nested at most 16 deep; `name` goes into the error.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view name);

}  // namespace apb::model
