// What the decoder's layer loop asks of attention. The loop is the same for prefill under every
// strategy, for the query pass and for decode; this interface is the only difference.
#pragma once

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace apb::model {

class LayerAttention {
 public:
  virtual ~LayerAttention() = default;

  // Before RoPE. qkv [T, (n_q + 2 n_kv) * d] is the concatenation of the projections (biases and
  // q/k norms applied), heads flattened: what a retaining head reads. Only called where
  // WantsPreRope() says so.
  virtual bool WantsPreRope(int layer) const = 0;
  virtual absl::Status BeforeRope(int layer, const kernels::TensorView& qkv,
                                  kernels::Stream& stream) = 0;

  // Where K and V of the rows from `first_row` on are stored, in the pass that rotates K; slots
  // absent: nowhere.
  struct Store {
    kernels::CacheRows to;
    int64_t first_row = 0;
  };
  virtual Store StoreOf(int layer) const = 0;

  // After RoPE, K and V stored: fills out [T, n_q, d]. q [T, n_q, d]; k, v [T, n_kv, d], views into
  // the packed buffer. Not called where WantsOutput says that nobody reads the output: the layer
  // ends with storing.
  virtual bool WantsOutput(int layer) const = 0;
  virtual absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                              const kernels::TensorView& v, const kernels::TensorView& out,
                              kernels::Stream& stream) = 0;
};

}  // namespace apb::model
