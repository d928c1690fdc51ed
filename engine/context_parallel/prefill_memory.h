// Memory that a document prefill takes on a rank, beside weights and KV cache: what admission on a
// device asks before it starts one. The rows' share is counted here, the rest is asked of the
// plan's strategy (StrategyInfo::prefill_bytes). A test holds it against what a backend is asked
// for.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

// Bytes.
struct PrefillMemory {
  int64_t hidden = 0;     // hidden states of the rank's rows, their ids, positions and slots
  int64_t attention = 0;  // packed q, k, v and what attention gives, of all rows
  int64_t chunk = 0;      // norms and MLP, of one chunk of rows
  int64_t strategy = 0;   // what travels, partial results, scores and retaining heads
  int64_t total() const { return hidden + attention + chunk + strategy; }
};

// At most this (few rows use memory that the decoder always has), of `rank` of `ranks`, for a
// document without a cached prefix (CheckRanks holds). `compressor`: as in PrefillDocument;
// `overlap`: PrefillDeps::overlap_passing.
PrefillMemory PrefillMemoryOf(const ShardPlan& plan, int ranks, int rank, const ModelShape& model,
                              std::string_view compressor, bool overlap);

// The rank that needs most.
int64_t MostPrefillBytes(const ShardPlan& plan, int ranks, const ModelShape& model,
                         std::string_view compressor, bool overlap);

}  // namespace apb::context_parallel
