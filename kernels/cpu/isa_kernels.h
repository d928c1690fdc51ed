// The operations that have one version for each instruction set. All versions have the same source
// (simd/), compiled with different flags in different namespaces, so that they share no inline
// function.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

namespace apb::kernels {

// Grow-only memory of one backend, for packed keys and partial results.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  // 64-byte aligned, contents undefined, valid until the next call. Null if there is not enough
  // memory.
  void* Reserve(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A kernel for an operation with these arguments, which have been checked. Results do not depend on
// `threads`: the shape alone divides the work, and partial results are combined in a fixed order.
// False if there is not enough memory for scratch.
template <typename Args>
using SimdKernel = bool (*)(const Args& args, int threads, Scratch& scratch);

// The operations that simd/ computes in one kernel.
#define APB_SIMD_OPERATIONS(X) \
  X(AttentionArgs)             \
  X(PagedAttentionArgs)        \
  X(RmsNormArgs)               \
  X(SiluMulArgs)               \
  X(AccumulateArgs)            \
  X(MergePartialsArgs)         \
  X(KeyScoreArgs)

// The kernels of one instruction set.
struct IsaKernels {
#define APB_SIMD_KERNEL(Args) \
  SimdKernel<Args> of_##Args; \
  SimdKernel<Args> Of(const Args*) const { return of_##Args; }
  APB_SIMD_OPERATIONS(APB_SIMD_KERNEL)
#undef APB_SIMD_KERNEL
  // The rotation alone: does not store to the cache.
  SimdKernel<RopeArgs> rope;
  // For few rows. False also for more rows than this kernel takes.
  SimdKernel<LinearArgs> linear;
  // For any number of rows.
  SimdKernel<LinearArgs> packed_linear;
  // Whether the matrix library computes products of many rows faster.
  bool library_products;
};

// The tables of the instruction sets for which kernels/cpu/CMakeLists.txt builds kernels/cpu/simd.
namespace isa_portable {
extern const IsaKernels kKernels;
}
namespace isa_avx2 {  // and FMA, F16C
extern const IsaKernels kKernels;
}
namespace isa_avx512 {  // F, BW, VL, DQ
extern const IsaKernels kKernels;
}
namespace isa_avx512vnni {  // and VNNI: dot products of bytes, for quantized weights
extern const IsaKernels kKernels;
}
namespace isa_avx512bf16 {  // and BF16
extern const IsaKernels kKernels;
}
namespace isa_amxbf16 {
extern const IsaKernels kKernels;
}

}  // namespace apb::kernels
