// Reads a whole file.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace apb::text {

// NotFound when it cannot be opened; ResourceExhausted above 1 GiB.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace apb::text
