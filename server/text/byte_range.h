// A half-open range of bytes in a text.
#pragma once

#include <cstddef>

namespace apb::text {

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;

  bool operator==(const ByteRange&) const = default;
};

}  // namespace apb::text
