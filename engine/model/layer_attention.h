// The attention of the decoder's layer loop, as an interface. The loop is the same for prefill
// under every strategy, for the query pass and for decode: they differ only in this attention.
#pragma once

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace apb::model {

class LayerAttention {
 public:
  virtual ~LayerAttention() = default;

  // Before RoPE, only in layers for which WantsPreRope is true. qkv [T, (n_q + 2 n_kv) * d] holds
  // the projections side by side (biases and q/k norms applied), heads flattened: the input of a
  // retaining head.
  virtual bool WantsPreRope(int layer) const = 0;
  virtual absl::Status BeforeRope(int layer, const kernels::TensorView& qkv,
                                  kernels::Stream& stream) = 0;

  // The place for K and V of the rows from `first_row` on. RoPE's kernel stores them as it rotates
  // K. Nothing is stored if the slots are absent.
  struct Store {
    kernels::CacheRows to;
    int64_t first_row = 0;
  };
  virtual Store StoreOf(int layer) const = 0;

  // After RoPE, with K and V stored: fills out [T, n_q, d] from q [T, n_q, d] and k, v [T, n_kv,
  // d], which are views into the packed buffer. Not called in layers for which WantsOutput is
  // false: their output has no reader, and they end with the storing of K and V.
  virtual bool WantsOutput(int layer) const = 0;
  virtual absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                              const kernels::TensorView& v, const kernels::TensorView& out,
                              kernels::Stream& stream) = 0;
};

}  // namespace apb::model
