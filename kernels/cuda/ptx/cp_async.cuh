// Asynchronous copies to shared memory by threads (cp.async, sm_80).
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// Starts the copy of 16 bytes from global to shared memory, both aligned to 16. If not `valid`,
// writes zeros and does not read the source.
__device__ __forceinline__ void CpAsync16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(target)),
               "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void CpAsyncCommitGroup() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the kBatches latest of this thread's groups are in flight.
template <int kBatches>
__device__ __forceinline__ void CpAsyncWaitGroup() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBatches) : "memory");
}

}  // namespace apb::kernels::cuda
