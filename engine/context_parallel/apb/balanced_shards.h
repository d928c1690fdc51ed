// APB blocks that take equally long, instead of blocks of equal length: a later host attends to
// more passed tokens and, but for the first, to the anchor, so it gets fewer tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace apb::context_parallel {

// Block lengths of `hosts` hosts, `tokens` in all, none longer than the one before. The cost of b
// tokens on host h, in query-key pairs, as on one device for each host:
//   b (r + h l_p + b / 2), and for h > 0 the anchor: b l_a + l_a (r + l_a / 2)
// with r = `row_cost` (projections, MLP and scores of a row, > 0), l_a = `anchor`, l_p = `passing`.
// Where the anchor alone would cost more than all tokens on fewer hosts, the last hosts get none.
std::vector<int64_t> BalancedShards(int64_t tokens, int hosts, int64_t anchor, int64_t passing,
                                    int64_t row_cost);

}  // namespace apb::context_parallel
