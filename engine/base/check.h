// APB_CHECK(condition): if an invariant of our own code is violated, prints where and ends the
// process. Input from outside is never checked this way.
#pragma once

#include <string_view>

namespace apb::base {
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression);
}  // namespace apb::base

#define APB_CHECK(condition) \
  ((condition) ? (void)0 : ::apb::base::CheckFailed(__FILE__, __LINE__, #condition))
