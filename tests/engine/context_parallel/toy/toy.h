// The toy strategy `gather_kv`, which is not in the product's table. It proves that a new strategy
// needs one folder and one row. It is exact: every rank gathers all ranks' keys and values.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Shards of equal length, one on each rank.
ShardPlan ToyPlan(const PromptLayout& layout, const StrategyOptions& options);
// The AllGather: every rank sends as much as the longest shard, and no compute hides it.
Traffic ToyTraffic(const TrafficCall& call);
int64_t ToyPrefillBytes(const MemoryCall& call);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateToy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
