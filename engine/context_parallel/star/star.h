// Star Attention (docs/algorithms.md): APB with the whole first shard as anchor, and without
// passing blocks. Its row of the table has a plan of its own; the rest is apb's.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

ShardPlan StarPlan(const PromptLayout& layout, const StrategyOptions& options);

}  // namespace apb::context_parallel
