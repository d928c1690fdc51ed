// Helpers of the code that launches kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch_kernel.h"
#include "kernels/tensor_view.h"

namespace apb::kernels::cuda {

// Shared memory that a block may have on every device: compute capabilities 8.6, 8.9 and 12.x have
// 99 KiB, others 163 KiB or more.
constexpr size_t kSharedBytesEverywhere = 99 * 1024;

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every row (along the last dimension) begins on a multiple of 16 bytes and has a multiple
// of 16 bytes.
inline bool IsAligned16(const TensorView& view) {
  const int64_t size = static_cast<int64_t>(SizeOf(view.dtype));
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
                 view.shape[view.rank - 1] * size % 16 == 0;
  for (int i = 0; i + 1 < view.rank; ++i) aligned = aligned && view.stride[i] * size % 16 == 0;
  return aligned;
}

// Calls body(T{}) with T = BFloat16 or Float16, the types that the matrix kernels take.
template <typename Body>
cudaError_t WithMatrixElement(DType dtype, Body body) {
  return dtype == DType::kBF16 ? body(BFloat16{}) : body(Float16{});
}

// Calls body(T{}) with T = float, BFloat16 or Float16.
template <typename Body>
cudaError_t WithElement(DType dtype, Body body) {
  return dtype == DType::kF32 ? body(float{}) : WithMatrixElement(dtype, body);
}

// Calls body(T{}, pack). pack.value is the number of elements in 16 bytes if aligned16, else 1.
template <typename Body>
cudaError_t WithElementAndPack(DType dtype, bool aligned16, Body body) {
  return WithElement(dtype, [&](auto element) {
    using T = decltype(element);
    if (aligned16) return body(element, std::integral_constant<int, 16 / sizeof(T)>{});
    return body(element, std::integral_constant<int, 1>{});
  });
}

// Calls body(pack) for operations with an f32 operand beside one of another type: pack.value is 4
// if aligned16, else 1.
template <typename Body>
cudaError_t WithFloatPack(bool aligned16, Body body) {
  return aligned16 ? body(std::integral_constant<int, 4>{})
                   : body(std::integral_constant<int, 1>{});
}

}  // namespace apb::kernels::cuda
