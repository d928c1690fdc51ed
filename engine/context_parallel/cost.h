// How long a document prefill takes, by what it computes and sends: what `auto` compares and what
// balances blocks. It sums what the plan's strategy says of its work and traffic, and knows no
// strategy. Pure; speeds are measured at start-up (engine/worker/calibration.h) or assumed. The
// last layer of a document prefill stores K and V only, and is counted so.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

struct PrefillCost {
  std::vector<double> compute_seconds;  // by rank
  double waiting_seconds = 0;           // for links, where no compute hides it
  double seconds = 0;                   // of the slowest rank, waiting included
  int64_t bytes_sent = 0;               // by all ranks
};

// `plan` on `ranks` ranks (CheckRanks holds). The `cached_tokens` that it starts behind
// (PromptLayout::cached_length) are spread evenly over the ranks.
PrefillCost PredictPrefill(const ShardPlan& plan, int ranks, int64_t cached_tokens,
                           const ModelShape& model, const MachineSpeed& speed);

// Projections, MLP and scores of one row as that many query-key pairs of attention: what
// StrategyOptions::row_cost_pairs asks for. A power of two, so that another calibration of the same
// machine gives the same blocks (and answers) as a rule; at least 1.
int64_t RowCostInPairs(const ModelShape& model, const MachineSpeed& speed);

// Parts of the strategies' own formulas.

// Pairs of so many rows that see each other causally.
inline double CausalPairs(double rows) { return rows * (rows + 1) / 2; }
// The work of a rank whose rows see all positions up to their own.
Work CausalWork(const ShardPlan& plan, int ranks, int rank);
// One message from a rank to another.
inline double TransferSeconds(const MachineSpeed& speed, double bytes) {
  return speed.link_latency_seconds + bytes / speed.link_bytes_per_second;
}

}  // namespace apb::context_parallel
