// Star Attention (docs/algorithms.md): APB whose anchor is the whole first block, and which passes
// nothing on. Its row of the table has a plan of its own; the rest is apb's.
#pragma once

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

ShardPlan StarPlan(const PromptLayout& layout, const StrategyOptions& options);

}  // namespace apb::context_parallel
