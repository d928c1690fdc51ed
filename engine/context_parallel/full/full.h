// The strategy full: one host, on rank 0, computes the whole document; nothing travels. Here are
// the functions that its row of the table names.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

ShardPlan FullPlan(const PromptLayout& layout, const StrategyOptions& options);
int64_t FullPrefillBytes(const MemoryCall& call);
// The attention is a ring of one rank.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateFull(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
