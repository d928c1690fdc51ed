// APB shards that take equally long to compute, instead of shards of equal length. A later host
// attends to more passing blocks and, unless it is the first, to the anchor; so it gets fewer
// tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace apb::context_parallel {

// Shard lengths of `hosts` hosts, `tokens` in all, none longer than the one before it. With one
// device for each host, b tokens on host h cost, in query-key pairs,
//   b (r + h l_p + b / 2), and for h > 0 also the anchor's b l_a + l_a (r + l_a / 2),
// with r = `row_cost` (projections, MLP and scores of a row, > 0), l_a = `anchor`, l_p = `passing`.
// If the anchor alone would cost more than all tokens on fewer hosts, the last hosts get no tokens.
std::vector<int64_t> BalancedShards(int64_t tokens, int hosts, int64_t anchor, int64_t passing,
                                    int64_t row_cost);

}  // namespace apb::context_parallel
