// The operations that have one version for each instruction set. Every version is the same source
// (isa/*.inc) compiled with other flags in a namespace of its own, so no inline function is shared
// between them.
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
  const char* name;
  bool (*attention)(const AttentionArgs& args, int threads, Scratch& scratch);
  bool (*paged_attention)(const PagedAttentionArgs& args, int threads, Scratch& scratch);
  // False where the matrix library is the better choice (without AMX: for more than a few rows) or
  // there is no memory for scratch.
  bool (*linear)(const LinearArgs& args, int threads, Scratch& scratch);
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

extern const IsaKernels kPortableKernels;
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;  // AVX-512 with BF16
extern const IsaKernels kAmxKernels;     // the same plus AMX tiles

}  // namespace apb::kernels
