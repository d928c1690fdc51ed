// Which host computes which tokens of a prompt, as plain values: the pure half of every strategy.
// The same on all ranks, because it depends on the request and the group size only. A "host" is a
// share of the context group (0-based); a rank plays hosts [rank * hosts / ranks, (rank + 1) *
// hosts / ranks).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/context_parallel/strategy_options.h"

namespace apb::context_parallel {

struct StrategyInfo;  // strategy_info.h

// The prompt: document tokens at positions [0, document_length), then the query.
struct PromptLayout {
  int64_t document_length = 0;
  // Document tokens [0, cached_length) have their KV already: the plan spreads the others. Above 0
  // only where StrategyInfo::starts_from_prefix.
  int64_t cached_length = 0;
  int64_t query_length = 0;           // at least 1
  int64_t query_insert_position = 0;  // where the embedded query goes in the anchor
  int64_t embedded_query_length = 0;
};

// Document tokens [begin, end); their positions are the same numbers.
struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t length() const { return end - begin; }
  bool operator==(const TokenSpan&) const = default;
};

struct HostShard {
  // Ascending. One span for block-wise splits, two for zigzag (which may touch); empty ones are
  // left out.
  std::vector<TokenSpan> local;
  bool sees_anchor = false;  // local rows attend to the anchor
  // Candidates for passing: local rows of this document span (document token numbers).
  TokenSpan passing_candidates;
  int64_t passing_length = 0;  // tokens that this host contributes per KV head (0 = none)
  int64_t local_length() const {
    int64_t n = 0;
    for (const TokenSpan& span : local) n += span.length();
    return n;
  }
  bool operator==(const HostShard&) const = default;
};

// One row of the anchor block: token `index` of the document, or of the embedded query.
struct AnchorSource {
  bool in_query = false;
  int32_t index = 0;
  bool operator==(const AnchorSource&) const = default;
};

struct ShardPlan {
  const StrategyInfo* strategy = nullptr;  // whose plan it is; MakeShardPlan sets it
  std::vector<HostShard> hosts;
  // Rows of the anchor, at positions 0, 1, 2, ...; empty = no anchor. The anchor's activations
  // depend on nothing else, so a rank computes it once for all the hosts that it
  // plays.
  std::vector<AnchorSource> anchor;
  bool operator==(const ShardPlan&) const = default;

  // Document tokens that the hosts compute: all but the cached ones.
  int64_t document_length() const;
  // For logs and tests.
  std::string DebugString() const;
};

// The hosts of one rank: [first, last).
struct HostRange {
  int first = 0;
  int last = 0;
};
HostRange HostsOfRank(int hosts, int ranks, int rank);

// Who computes what, by that strategy. Pure: all ranks make the same plan of the same arguments.
// kInvalidArgument (message names the field) for options out of range, and for a cached prefix
// where the strategy cannot start from one. Lengths that the document is too short for are cut, not
// refused (the strategies' folders say how).
absl::StatusOr<ShardPlan> MakeShardPlan(const StrategyInfo& strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

// One block for each host, one behind the other, of these lengths; empty ones are left out.
ShardPlan Blocks(const std::vector<int64_t>& lengths);
// Blocks of ceil(n / hosts) tokens; the last ones may be shorter or empty.
ShardPlan EqualBlocks(int64_t n, int hosts);

// The hosts of a plan can be played by this many ranks: one host, or the same number on each rank
// (exactly one on each where the strategy has HostsRule::kOneOnEachRank).
absl::Status CheckRanks(const ShardPlan& plan, int ranks);

// Document tokens whose KV rank `rank` keeps.
int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank);

}  // namespace apb::context_parallel
