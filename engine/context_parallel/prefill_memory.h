// Memory that a document prefill takes on a rank, beside weights and KV cache. Admission on a
// device asks for it before it starts a prefill. The memory of the rows is counted here; the plan's
// strategy counts the rest (StrategyInfo::prefill_bytes). A test compares the sum with the memory
// that a prefill allocates from a backend.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

// Bytes.
struct PrefillMemory {
  int64_t hidden = 0;     // hidden states of the rank's rows, their ids, positions and slots
  int64_t attention = 0;  // packed q, k, v and attention outputs of all rows
  int64_t chunk = 0;      // norms and MLP of one chunk of rows
  int64_t strategy = 0;   // messages, partial results, scores and retaining heads
  int64_t total() const { return hidden + attention + chunk + strategy; }
};

// An upper bound for rank `rank` of `ranks` (CheckRanks holds) and a document without a cached
// prefix. A prefill of few rows takes less, because it uses memory that the decoder always has.
// `compressor` is as in PrefillDocument, `overlap` is PrefillDeps::overlap_passing.
PrefillMemory PrefillMemoryOf(const ShardPlan& plan, int ranks, int rank, const ModelShape& model,
                              std::string_view compressor, bool overlap);

// The total of the rank that needs most.
int64_t MostPrefillBytes(const ShardPlan& plan, int ranks, const ModelShape& model,
                         std::string_view compressor, bool overlap);

}  // namespace apb::context_parallel
