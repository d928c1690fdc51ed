// A strategy that is not in the product's table, to prove what a new one needs: this folder and one
// row. Exact: every rank gathers the keys and values of all (`gather_kv`).
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Equal blocks, one on each rank.
ShardPlan ToyPlan(const PromptLayout& layout, const StrategyOptions& options);
// The AllGather: all ranks' parts are as long as the longest; nothing is hidden.
Traffic ToyTraffic(const TrafficCall& call);
int64_t ToyPrefillBytes(const MemoryCall& call);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateToy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
