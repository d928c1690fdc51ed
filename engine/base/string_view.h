// Abseil may be built with its own string_view (as on Debian). These functions convert between it
// and std::string_view.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace apb::base {

inline absl::string_view AbslView(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace apb::base
