// APB (docs/algorithms.md): every host but the first sees an anchor block (document head, embedded
// query, more document) and the passing blocks of earlier hosts. Here are the functions that the
// table's row of apb names. The row of star uses all of them but the plan.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// Shards of equal length, or balanced shards. With b = ceil(n / hosts), the default lengths are
// anchor b / 4 and passing b / 8, both at most 8192 (the authors' values from 32K to 512K). The
// default anchor grows up to b / 2 if the embedded query needs it. Lengths are cut if the document
// is too short for them: anchor <= b, passing <= b and <= candidates, embedded query <= anchor (its
// tail is kept, because the end of a question says what is asked).
ShardPlan ApbPlan(const PromptLayout& layout, const StrategyOptions& options);

// Lets every host after the first that has tokens see the anchor. If there is no such host, removes
// the anchor from the plan.
void ShowAnchor(ShardPlan& plan);

// Whether a host of the rank sees the anchor, or scores its tokens by the anchor's query rows.
bool NeedsAnchor(const ShardPlan& plan, int ranks, int rank, std::string_view compressor);

// Does not count that a query-aware compressor makes rank 0 compute the anchor too.
Work AnchorWork(const ShardPlan& plan, int ranks, int rank);
// The AllGather of the passing blocks, all of which are as long as the longest.
Traffic PassingTraffic(const TrafficCall& call);

int64_t AnchorPrefillBytes(const MemoryCall& call);
// Local attention, with an anchor block and passing blocks if the plan has them.
// kFailedPrecondition if the checkpoint lacks the retaining heads that the compressor needs;
// kInvalidArgument if the compressor is unknown.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateAnchorStrategy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream& stream);

}  // namespace apb::context_parallel
