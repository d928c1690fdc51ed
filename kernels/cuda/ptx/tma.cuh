// Bulk tensor copies to shared memory (cp.async.bulk.tensor, sm_90). Tiles come as the 128-byte
// swizzle puts them: blocks of 64 columns, each [rows, 64] bf16 or f16 on a multiple of 1024 bytes,
// the 16-byte chunks of a row exchanged by row % 8.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// The box of `map` that begins at (column, head, row) to `target`; its bytes count for `barrier`.
// What lies outside of the tensor is zero.
__device__ __forceinline__ void TmaLoad3d(void* target, const CUtensorMap& map, uint64_t* barrier,
                                          int column, int head, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(SharedAddress(target)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(column), "r"(head), "r"(row)
      : "memory");
}

}  // namespace apb::kernels::cuda
