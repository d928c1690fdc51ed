// kernels/cuda/launch_kernel.h for the emulator: launches a kernel on fibers.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace apb::kernels::cuda {

template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Params>... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  return EmuDo(stream,
               [=] { emulator::RunGrid(grid, threads, shared_bytes, [&] { kernel(args...); }); });
}

}  // namespace apb::kernels::cuda
