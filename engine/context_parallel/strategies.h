// The table of strategies, by name and by property. Its rows: strategies.cc.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {

// All rows, in the order of the enumeration of names on the wire (apb.inference.v1.Strategy).
std::span<const StrategyInfo* const> Strategies();

// The row of that name; null if there is none.
const StrategyInfo* FindStrategy(std::string_view name);
// kInvalidArgument for a name without a row; the message has the names that there are.
absl::Status UnknownStrategy(std::string_view name);

// What `auto` may become, exact or approximate, in the order in which it is tried.
std::vector<const StrategyInfo*> AutoCandidates(bool exact);
// The first exact one of them with such hosts: there is one on a single host, and one with a host
// on each rank.
const StrategyInfo& FirstExact(HostsRule hosts);

// MakeShardPlan (shard_plan.h) by name.
absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

// One row more, behind the others, until the process ends; for tests, before threads begin. `info`
// must live as long.
void AddStrategyForTest(const StrategyInfo& info);

}  // namespace apb::context_parallel
