// Which host computes which tokens of a prompt, as plain values: the pure half of every strategy.
// The same on all ranks, because it depends on the request and the group size only. A "host" is a
// share of the context group (0-based); a rank plays hosts [rank * hosts / ranks, (rank + 1) *
// hosts / ranks).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::context_parallel {

// The prompt: document tokens at positions [0, document_length), then the query.
struct PromptLayout {
  int64_t document_length = 0;
  // Document tokens [0, cached_length) have their KV already: the plan spreads the others. Only
  // full and the rings can start from there.
  int64_t cached_length = 0;
  int64_t query_length = 0;           // at least 1
  int64_t query_insert_position = 0;  // where the embedded query goes in the anchor
  int64_t embedded_query_length = 0;
};

struct StrategyOptions {
  int hosts = 1;
  int64_t anchor_length = -1;  // -1: the authors' value for the length (docs/algorithms.md)
  int64_t passing_length = -1;
  // apb: blocks that take equally long, where a row costs as much as so many query-key pairs
  // (cost_model.h); 0: equally long blocks. The other strategies have no use for it.
  int64_t row_cost_pairs = 0;
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

// One row of the anchor block: a document token (>= 0) or embedded query token i, written as -1 -
// i.
using AnchorSource = int32_t;

// How hosts see each other's tokens in a document prefill.
enum class Exchange {
  kNone,       // one host has all tokens (full)
  kAnchor,     // an anchor and passing blocks (apb), an anchor alone (star)
  kRingKv,     // keys and values travel around the ring of ranks
  kRingQ,      // queries travel, partial outputs return in the end
  kTokenRing,  // queries travel one way while partial outputs return the other way
  kUlysses,    // tokens of some heads become some tokens of all heads, and back
};

struct ShardPlan {
  std::vector<HostShard> hosts;
  Exchange exchange = Exchange::kAnchor;
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

}  // namespace apb::context_parallel
