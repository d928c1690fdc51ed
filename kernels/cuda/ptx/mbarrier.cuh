// Barriers in shared memory (mbarrier, sm_90) and named barriers (bar).
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// A barrier's phase ends when `arrivals` threads have arrived and all expected bytes have come.
__device__ __forceinline__ void MbarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes initialized barriers visible to the copy engine. A __syncthreads() must follow.
__device__ __forceinline__ void FenceMbarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void MbarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// Arrives, and makes this phase expect `bytes` more bytes of copies.
__device__ __forceinline__ void MbarrierArriveExpectTx(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase of this parity has ended. A new barrier is in phase 0; the phase before, of
// parity 1, counts as ended.
__device__ __forceinline__ void MbarrierWaitParity(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
// Named barriers, with ids 1 to 15, of `threads` threads: those that sync wait, the others only
// arrive.
__device__ __forceinline__ void BarSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void BarArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace apb::kernels::cuda
