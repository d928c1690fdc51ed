// Abseil may be built with a string_view of its own (Debian's is): these convert between it and the
// standard's.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace apb::base {

inline absl::string_view AbslView(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace apb::base
