// The rings (docs/algorithms.md): exact attention over zigzag shards, with keys or queries
// travelling around the ring of ranks. What their three rows of the table name.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// 2 * hosts chunks of ceil(n / (2 * hosts)) of the n tokens that are not cached; host h has chunk h
// and chunk 2 * hosts - 1 - h, so that all have as many causal pairs.
ShardPlan ZigzagPlan(const PromptLayout& layout, const StrategyOptions& options);

// What a rank sends in one step, of one layer: the keys and values that it holds, or its rows'
// queries.
int64_t KeyStepBytes(int ranks, int64_t cached_tokens, int64_t new_tokens, const ModelShape& model);
int64_t QueryStepBytes(int ranks, int64_t new_tokens, const ModelShape& model);

Traffic RingKvTraffic(const TrafficCall& call);
Traffic RingQTraffic(const TrafficCall& call);
Traffic TokenRingTraffic(const TrafficCall& call);

int64_t RingKvPrefillBytes(const MemoryCall& call);
int64_t RingQPrefillBytes(const MemoryCall& call);
int64_t TokenRingPrefillBytes(const MemoryCall& call);

// ring/attend.h says what travels when.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingKv(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingQ(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateTokenRing(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
