// Everything on one host, which is on rank 0: nothing travels. What its row of the table names.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

ShardPlan FullPlan(const PromptLayout& layout, const StrategyOptions& options);
int64_t FullPrefillBytes(const MemoryCall& call);
// A ring of one rank.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateFull(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
