// APB_CHECK: an invariant of ours is violated; prints where and stops the process. User input never
// gets here.
#pragma once

#include <string_view>

namespace apb::base {
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression);
}  // namespace apb::base

#define APB_CHECK(condition) \
  ((condition) ? (void)0 : ::apb::base::CheckFailed(__FILE__, __LINE__, #condition))
