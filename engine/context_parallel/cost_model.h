// How long a document prefill takes, by what it computes and sends: what `auto` compares and what
// balances APB's blocks. Pure; speeds are measured at start-up (engine/worker/calibration.h) or
// assumed. The last layer of a document prefill stores K and V only, and is counted so.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

// One rank and its links. The defaults are what `--calibration off` takes: a few CPU cores and a
// fast network; they decide nothing but crossing points.
struct MachineSpeed {
  double product_flops = 1e12;          // FLOP/s of matrix products with many rows
  double attention_flops = 5e11;        // FLOP/s of prefill attention, visible pairs only
  double link_bytes_per_second = 5e9;   // from one rank to another
  double link_latency_seconds = 20e-6;  // of each message
};

// Of a rank: where heads and MLP are divided among tensor parallel ranks, its share of them (their
// sums cost all strategies the same and are not counted).
struct ModelShape {
  int32_t layers = 1;
  int64_t hidden_size = 1, mlp_size = 1;
  int64_t query_heads = 1, kv_heads = 1, head_dim = 1;
  int64_t retaining_width = 0;  // d_R of the retaining heads, 0 where the model has none
  int64_t element_bytes = 2;    // of activations and KV
};

struct PrefillCost {
  std::vector<double> compute_seconds;  // by rank
  double waiting_seconds = 0;           // for links, where no compute hides it
  double seconds = 0;                   // of the slowest rank, waiting included
  int64_t bytes_sent = 0;               // by all ranks
};

// `plan` on `ranks` ranks (CheckRanks holds). The `cached_tokens` that it starts behind
// (PromptLayout::cached_length) are spread evenly over the ranks; their keys travel with ring_kv.
PrefillCost PredictPrefill(const ShardPlan& plan, int ranks, int64_t cached_tokens,
                           const ModelShape& model, const MachineSpeed& speed);

// What a rank of the ring sends in one step, of one layer: its rows' queries, or the keys and
// values that it holds. Rings only.
int64_t RingStepBytes(Exchange exchange, int ranks, int64_t cached_tokens, int64_t new_tokens,
                      const ModelShape& model);

// Projections, MLP and scores of one row as that many query-key pairs of attention: what
// StrategyOptions::row_cost_pairs asks for. A power of two, so that another calibration of the same
// machine gives the same blocks (and answers) as a rule; at least 1.
int64_t RowCostInPairs(const ModelShape& model, const MachineSpeed& speed);

}  // namespace apb::context_parallel
