// The table of strategies, by name and by property. Its rows are in strategies.cc.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// All rows, in the order of the enumeration of names on the wire (apb.inference.v1.Strategy).
std::span<const StrategyInfo* const> Strategies();

// The row of that name. Null if there is none.
const StrategyInfo* FindStrategy(std::string_view name);
// The kInvalidArgument status for a name without a row. Its message lists the known names.
absl::Status UnknownStrategy(std::string_view name);

// The exact, or the approximate, strategies that `auto` may choose, in the order in which it tries
// them.
std::vector<const StrategyInfo*> AutoCandidates(bool exact);
// The first exact candidate of `auto` with that rule. There must be one (a CHECK): there is one for
// kOne and for kOneOnEachRank.
const StrategyInfo& FirstExact(HostsRule hosts);

// MakeShardPlan (shard_plan.h) by the strategy's name.
absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

}  // namespace apb::context_parallel
