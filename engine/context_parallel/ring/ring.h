// The rings (docs/algorithms.md): exact attention over zigzag shards, with keys or queries
// travelling around the ring of ranks. Here are the functions that the table's rows of ring_kv,
// ring_q and token_ring name.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Cuts the n tokens that are not cached into 2 * hosts chunks of ceil(n / (2 * hosts)). Host h gets
// chunks h and 2 * hosts - 1 - h, so that all hosts have equally many causal pairs.
ShardPlan ZigzagPlan(const PromptLayout& layout, const StrategyOptions& options);

// Bytes that a rank sends in one step of one layer: the keys and values, or the queries, that it
// holds.
int64_t KeyStepBytes(int ranks, int64_t cached_tokens, int64_t new_tokens, const ModelShape& model);
int64_t QueryStepBytes(int ranks, int64_t new_tokens, const ModelShape& model);

Traffic RingKvTraffic(const TrafficCall& call);
Traffic RingQTraffic(const TrafficCall& call);
Traffic TokenRingTraffic(const TrafficCall& call);

int64_t RingKvPrefillBytes(const MemoryCall& call);
int64_t RingQPrefillBytes(const MemoryCall& call);
int64_t TokenRingPrefillBytes(const MemoryCall& call);

// ring/attend.h describes what travels in each of them.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingKv(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingQ(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateTokenRing(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
