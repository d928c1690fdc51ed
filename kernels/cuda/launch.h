// Kernel launches and what host code of kernels shares.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/tensor_view.h"

namespace apb::kernels::cuda {

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Launches `kernel` unless the grid is empty. More than 48 KiB of shared memory are asked for here.
template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Params>... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {&args...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), pointers,
                          shared_bytes, stream);
}

// Whether every row (of the last dimension) begins on a multiple of 16 bytes and is a number of
// them.
inline bool IsAligned16(const TensorView& view) {
  const int64_t size = static_cast<int64_t>(SizeOf(view.dtype));
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
                 view.shape[view.rank - 1] * size % 16 == 0;
  for (int i = 0; i + 1 < view.rank; ++i) aligned = aligned && view.stride[i] * size % 16 == 0;
  return aligned;
}

// Calls body(T{}) with T = float or BFloat16.
template <typename Body>
cudaError_t WithElement(DType dtype, Body body) {
  return dtype == DType::kBF16 ? body(BFloat16{}) : body(float{});
}

// Calls body(T{}, pack), pack a constant: elements of a 16-byte access, or 1.
template <typename Body>
cudaError_t WithElementAndPack(DType dtype, bool aligned16, Body body) {
  return WithElement(dtype, [&](auto element) {
    using T = decltype(element);
    if (aligned16) return body(element, std::integral_constant<int, 16 / sizeof(T)>{});
    return body(element, std::integral_constant<int, 1>{});
  });
}

// Calls body(pack) for operations with an f32 operand beside one of another type.
template <typename Body>
cudaError_t WithFloatPack(bool aligned16, Body body) {
  return aligned16 ? body(std::integral_constant<int, 4>{})
                   : body(std::integral_constant<int, 1>{});
}

}  // namespace apb::kernels::cuda
