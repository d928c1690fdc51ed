// The launch of a kernel.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace apb::kernels::cuda {

// Launches `kernel`, unless the grid is empty. Opts in to more than 48 KiB of shared memory if
// needed.
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

}  // namespace apb::kernels::cuda
