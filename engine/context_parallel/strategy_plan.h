// The plan half of the registry: strategy name -> who computes what. Pure; the scheduler uses it
// too.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

// full: everything local on host 0.
// apb (docs/algorithms.md): equal or balanced blocks; hosts > 0 see an anchor (document head,
//   embedded query, more document) and what earlier hosts pass on. Defaults for b = ceil(n / hosts):
//   anchor b / 4 and passing b / 8, both at most 8192 (the authors' lengths from 32K to 512K); the
//   default anchor grows to b / 2 where the embedded query needs it.
// star: the anchor is the whole first block, nothing is passed on.
// ring_kv, ring_q, token_ring: exact; 2 * hosts chunks of ceil(n / (2 * hosts)), host h has chunk h
//   and chunk 2 * hosts - 1 - h (zigzag), so that all have as many causal pairs.
//   Behind a cached prefix the same with the tokens that are left.
// ulysses: exact; equal blocks, which trade places with heads for attention.
// kInvalidArgument (message names the field) for an unknown strategy or options out of range.
// Lengths that the document is too short for are cut, not refused: anchor <= b, passing <= b and <=
// candidates, embedded query <= anchor (its tail is kept: questions end with what is asked).
absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

// Whether document rows attend to all earlier tokens.
bool IsExact(std::string_view strategy);
// Whether a rank plays exactly one host in this strategy.
bool IsOneHostPerRank(std::string_view strategy);
// Whether several documents can be computed together, in one prefill.
bool CanBatch(std::string_view strategy);

// Whether heads divide among ranks as ulysses needs it: ranks divide the query heads, and a rank's
// share is whole KV heads or an even part of one.
bool UlyssesFits(int64_t query_heads, int64_t kv_heads, int64_t ranks);

// The hosts of a plan can be played by this many ranks: one host, or the same number on each rank
// (for the exact strategies one).
absl::Status CheckRanks(const ShardPlan& plan, int ranks);

// Rows of the embedded query within the plan's anchor: [begin, begin + length).
TokenSpan EmbeddedQueryRows(const ShardPlan& plan);

// Document tokens whose KV rank `rank` keeps.
int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank);

}  // namespace apb::context_parallel
