// The plan half of the registry: strategy name -> who computes what. Pure; the scheduler uses it
// too.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/attention/shard_plan.h"

namespace apb::attention {

// full: everything local on host 0.
// apb (docs/algorithms.md): equal blocks; hosts > 0 see an anchor (document head, embedded query,
// more document) and
//   what earlier hosts pass on. Defaults for block length b: anchor b / 4 and passing b / 8, both
//   at most 8192 (the authors' lengths from 32K to 512K); the default anchor grows to b / 2 where
//   the embedded query needs it.
// star: the anchor is the whole first block, nothing is passed on.
// kInvalidArgument (message names the field) for an unknown strategy or options out of range.
// Lengths that the document is too short for are cut, not refused: anchor <= block, passing <=
// candidates, embedded query <= anchor (its tail is kept: questions end with what is asked).
absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

// The hosts of a plan can be played by this many ranks: one host, or the same number on each rank.
absl::Status CheckRanks(const ShardPlan& plan, int ranks);

// Rows of the embedded query within the plan's anchor: [begin, begin + length).
TokenSpan EmbeddedQueryRows(const ShardPlan& plan);

// Document tokens whose KV rank `rank` keeps.
int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank);

}  // namespace apb::attention
