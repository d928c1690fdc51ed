// Exact attention by trading places (DeepSpeed-Ulysses, arXiv 2309.14509): before attention each
// rank gives away all heads of its tokens but its share, and gets its share of the heads of all
// tokens; afterwards outputs go back. What its row of the table names.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Ranks must divide the query heads, and a rank's share be whole KV heads or an even part of one:
// where ranks are more than KV heads, several ranks get the same KV head.
absl::Status UlyssesSupports(const ModelShape& model, int ranks);
// Equal blocks.
ShardPlan UlyssesPlan(const PromptLayout& layout, const StrategyOptions& options);
Work UlyssesWork(const ShardPlan& plan, int ranks, int rank);
Traffic UlyssesTraffic(const TrafficCall& call);
int64_t UlyssesPrefillBytes(const MemoryCall& call);
// kInvalidArgument where the heads do not divide among the ranks.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateUlysses(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
