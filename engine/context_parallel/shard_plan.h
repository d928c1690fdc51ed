// The plan of a prefill: which host computes which tokens of a prompt, as plain values. It is the
// pure half of every strategy. All ranks make the same plan, because it depends on the request and
// the group's size only. A "host" (0-based) is a share of the document; a rank plays hosts
// [rank * hosts / ranks, (rank + 1) * hosts / ranks).
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
  // The KV of document tokens [0, cached_length) is already in the cache: the plan spreads the
  // other tokens. Above 0 only with StrategyInfo::starts_from_prefix.
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
  // Ascending; empty spans are left out. A shard of consecutive tokens has one span, a zigzag shard
  // has two, which may touch.
  std::vector<TokenSpan> local;
  bool sees_anchor = false;  // local rows attend to the anchor
  // The document tokens that this host may pass on; part of `local`.
  TokenSpan passing_candidates;
  int64_t passing_length = 0;  // tokens that this host passes on per KV head; may be 0
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
  const StrategyInfo* strategy = nullptr;  // the strategy that made the plan; MakeShardPlan sets it
  std::vector<HostShard> hosts;
  // Rows of the anchor, at positions 0, 1, 2, ...; empty without an anchor. The anchor's
  // activations depend on its rows only, so a rank computes it once for all hosts that it plays.
  std::vector<AnchorSource> anchor;
  bool operator==(const ShardPlan&) const = default;

  // The number of document tokens that the hosts compute: all but the cached ones.
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

// The strategy's plan. Pure: all ranks make the same plan from the same arguments.
// kInvalidArgument (the message names the field) for options out of range, and for a cached prefix
// if the strategy cannot start from one. Anchor and passing lengths that the document is too short
// for are cut, not refused (apb/apb.h).
absl::StatusOr<ShardPlan> MakeShardPlan(const StrategyInfo& strategy, const PromptLayout& layout,
                                        const StrategyOptions& options);

// One host for each length, with shards of consecutive tokens from token 0 on. A host of length 0
// has no span.
ShardPlan Blocks(const std::vector<int64_t>& lengths);
// Shards of ceil(n / hosts) consecutive tokens; the last ones may be shorter or empty.
ShardPlan EqualBlocks(int64_t n, int hosts);

// Whether `ranks` ranks can play the plan's hosts: OK for one host, and for the same number of
// hosts on each rank. With HostsRule::kOneOnEachRank, only one host on each rank is OK.
// kInvalidArgument otherwise.
absl::Status CheckRanks(const ShardPlan& plan, int ranks);

// Document tokens whose KV rank `rank` keeps.
int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank);

}  // namespace apb::context_parallel
