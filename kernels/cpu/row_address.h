// Addresses of rows in views.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor_view.h"

namespace apb::kernels {

// The address of row [row], or of row [row, second] of a view of rank 3.
inline std::byte* RowAt(const TensorView& view, int64_t row, int64_t second = 0) {
  return static_cast<std::byte*>(view.data) + (row * view.stride[0] + second * view.stride[1]) *
                                                  static_cast<int64_t>(SizeOf(view.dtype));
}

}  // namespace apb::kernels
