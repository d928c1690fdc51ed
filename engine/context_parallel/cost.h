// Predicts how long a document prefill takes, from its compute and its traffic. Strategy `auto`
// compares these times; balanced shards are cut by them. The functions sum the work and the traffic
// that the plan's strategy reports, and know no strategy by name. They are pure. Speeds are
// measured at start-up (engine/worker/calibration.h) or assumed. The last layer of a document
// prefill only computes and stores K and V, and is counted as such.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

struct PrefillCost {
  std::vector<double> compute_seconds;  // by rank
  double waiting_seconds = 0;           // for links, where no compute hides the transfer
  double seconds = 0;                   // of the slowest rank, waiting included
  int64_t bytes_sent = 0;               // by all ranks
};

// The cost of `plan` on `ranks` ranks, for which CheckRanks holds. The `cached_tokens` before the
// plan's tokens (PromptLayout::cached_length) count as spread evenly over the ranks.
PrefillCost PredictPrefill(const ShardPlan& plan, int ranks, int64_t cached_tokens,
                           const ModelShape& model, const MachineSpeed& speed);

// The value for StrategyOptions::row_cost_pairs: the number of query-key pairs whose attention
// takes as long as one row's projections, MLP and scores. A power of two, so that another
// calibration of the same machine mostly gives the same shards (and answers); at least 1.
int64_t RowCostInPairs(const ModelShape& model, const MachineSpeed& speed);

// The functions below are shared by the strategies' own formulas.

// Query-key pairs of `rows` rows that see each other causally.
inline double CausalPairs(double rows) { return rows * (rows + 1) / 2; }
// The work of a rank whose rows see all positions up to their own.
Work CausalWork(const ShardPlan& plan, int ranks, int rank);
// The time of one message from one rank to another.
inline double TransferSeconds(const MachineSpeed& speed, double bytes) {
  return speed.link_latency_seconds + bytes / speed.link_bytes_per_second;
}

}  // namespace apb::context_parallel
