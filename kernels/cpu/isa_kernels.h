// The operations that have one version for each instruction set. Every version is the same source
// (simd/) compiled with other flags in a namespace of its own, so no inline function is shared between
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_args.h"
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

// Results do not depend on `threads`: work is cut by shape alone and partial results merge in a
// fixed order. Arguments have been checked. False: no memory for scratch.
struct IsaKernels {
  bool (*attention)(const AttentionArgs& args, int threads, Scratch& scratch);
  bool (*paged_attention)(const PagedAttentionArgs& args, int threads, Scratch& scratch);
  // Few rows. False, too, for more rows than these kernels are made for.
  bool (*linear)(const LinearArgs& args, int threads, Scratch& scratch);
  // Any number of rows.
  bool (*packed_linear)(const LinearArgs& args, int threads, Scratch& scratch);
  // The matrix library computes products of many rows faster.
  bool library_products;
  void (*rms_norm)(const TensorView& x, const TensorView& weight, float epsilon,
                   const TensorView& out, int threads);
  void (*rope)(const RopeArgs& args, int threads);
  void (*silu_mul)(const TensorView& gate, const TensorView& up, const TensorView& out,
                   int threads);
  void (*accumulate)(const TensorView& x, const TensorView& out, int threads);
  void (*merge_partials)(const TensorView& outs, const TensorView& lses, const TensorView& out,
                         const TensorView& lse, int threads);
  void (*key_scores)(const KeyScoreArgs& args, int threads);
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
