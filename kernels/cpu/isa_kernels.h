// The operations that have one version for each instruction set. Every version is the same source
// (simd/) compiled with other flags in a namespace of its own, so no inline function is shared
// between them.
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
  // 64-byte aligned, contents undefined, valid until the next call. Null when there is no memory.
  void* Reserve(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A kernel for operations with these arguments, which have been checked. Results do not depend on
// `threads`: work is cut by shape alone and partial results merge in a fixed order. False: no
// memory for scratch.
template <typename Args>
using SimdKernel = bool (*)(const Args& args, int threads, Scratch& scratch);

// The arguments of the operations that simd/ computes as they are.
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
  // Without the cache.
  SimdKernel<RopeArgs> rope;
  // Few rows. False, too, for more rows than these kernels are made for.
  SimdKernel<LinearArgs> linear;
  // Any number of rows.
  SimdKernel<LinearArgs> packed_linear;
  // The matrix library computes products of many rows faster.
  bool library_products;
};

// One for each instruction set that kernels/cpu/CMakeLists.txt builds kernels/cpu/simd for.
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
