// Ulysses: exact attention in which tokens trade places with heads (DeepSpeed-Ulysses, arXiv
// 2309.14509). Before attention, each rank sends away the other ranks' heads of its tokens and
// receives its own heads of all tokens. After attention, the outputs go back. Here are the
// functions that its row of the table names.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// The ranks must divide the query heads, and the KV heads must be a multiple or a divisor of the
// ranks. With more ranks than KV heads, several ranks get the same KV head. kInvalidArgument
// otherwise.
absl::Status UlyssesSupports(const ModelShape& model, int ranks);
// Shards of equal length.
ShardPlan UlyssesPlan(const PromptLayout& layout, const StrategyOptions& options);
Work UlyssesWork(const ShardPlan& plan, int ranks, int rank);
Traffic UlyssesTraffic(const TrafficCall& call);
int64_t UlyssesPrefillBytes(const MemoryCall& call);
// kInvalidArgument as UlyssesSupports.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateUlysses(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
