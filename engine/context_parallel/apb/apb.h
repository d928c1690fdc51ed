// APB (docs/algorithms.md): hosts > 0 see an anchor (document head, embedded query, more document)
// and what earlier hosts pass on. What its row of the table names; star has all of it but the plan.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Equal or balanced blocks. Default lengths for b = ceil(n / hosts): anchor b / 4, passing b / 8,
// both at most 8192 (the authors' from 32K to 512K); the default anchor grows to b / 2 where the
// embedded query needs it. What the document is too short for is cut: anchor <= b, passing <= b and
// <= candidates, embedded query <= anchor (its tail is kept: questions end with what is asked).
ShardPlan ApbPlan(const PromptLayout& layout, const StrategyOptions& options);

// Hosts after the first that have tokens see the anchor. Without such a host the plan has none.
void ShowAnchor(ShardPlan& plan);

// A host of the rank sees the anchor, or scores its tokens by the anchor's query rows.
bool NeedsAnchor(const ShardPlan& plan, int ranks, int rank, std::string_view compressor);

// A compressor that scores by the query makes rank 0 compute the anchor too, which is left out.
Work AnchorWork(const ShardPlan& plan, int ranks, int rank);
// The AllGather of what is passed on: all ranks' parts are as long as the longest.
Traffic PassingTraffic(const TrafficCall& call);

int64_t AnchorPrefillBytes(const MemoryCall& call);
// Local attention with an anchor block and with passing blocks, where the plan has them.
// kFailedPrecondition: the checkpoint has no retaining heads; kInvalidArgument: the compressor is
// unknown.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateAnchorStrategy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
