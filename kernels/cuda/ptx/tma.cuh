// Bulk tensor copies to shared memory (cp.async.bulk.tensor, sm_90). Tiles have the 128-byte
// swizzle: blocks [rows, 64] of bf16 or f16 on multiples of 1024 bytes, in which the 16-byte chunks
// of a row are permuted by row % 8.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// Starts the copy of the box of `map` that begins at (column, head, row) to `target`. `barrier`
// counts its bytes. Elements outside the tensor become 0.
__device__ __forceinline__ void TmaLoad3d(void* target, const CUtensorMap& map, uint64_t* barrier,
                                          int column, int head, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(SharedAddress(target)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(column), "r"(head), "r"(row)
      : "memory");
}

}  // namespace apb::kernels::cuda
