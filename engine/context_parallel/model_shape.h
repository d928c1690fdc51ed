// The model's shape and the machine's speed: inputs of the prefill's cost and memory.
#pragma once

#include <cstdint>

namespace apb::context_parallel {

// The speed of one rank and its links. `--calibration off` uses the defaults: a few CPU cores and a
// fast network. They only decide at which lengths `auto` changes its strategy.
struct MachineSpeed {
  double product_flops = 1e12;          // FLOP/s of matrix products with many rows
  double attention_flops = 5e11;        // FLOP/s of prefill attention, visible pairs only
  double link_bytes_per_second = 5e9;   // from one rank to another
  double link_latency_seconds = 20e-6;  // of each message
};

// The shape of one rank's model. With tensor parallelism, heads and MLP are the rank's share of
// them. The sums over tensor parallel ranks cost the same in every strategy and are not counted.
struct ModelShape {
  int32_t layers = 1;
  int64_t hidden_size = 1, mlp_size = 1;
  int64_t query_heads = 1, kv_heads = 1, head_dim = 1;
  int64_t retaining_width = 0;  // d_R of the retaining heads, 0 if the model has none
  int64_t element_bytes = 2;    // of activations and KV

  int64_t query_width() const { return query_heads * head_dim; }
  int64_t kv_width() const { return 2 * kv_heads * head_dim; }  // K and V
  // Bytes of the PartialResults of `rows` rows: out and lse of all heads, f32.
  int64_t partial_bytes(int64_t rows) const { return rows * query_heads * (head_dim + 1) * 4; }
};

}  // namespace apb::context_parallel
