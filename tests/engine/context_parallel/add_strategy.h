// Adds rows to the table of strategies, which the product cannot do.
#pragma once

#include <vector>

#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// The table itself (engine/context_parallel/strategies.cc).
std::vector<const StrategyInfo*>& StrategyTable();

// One more row after the others, until the process ends. To be called before threads begin. `info`
// must live until the process ends.
inline void AddStrategy(const StrategyInfo& info) { StrategyTable().push_back(&info); }

}  // namespace apb::context_parallel
