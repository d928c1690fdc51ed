#include "engine/context_parallel/apb/balanced_shards.h"

#include <cmath>
#include <numeric>

namespace apb::context_parallel {
namespace {

struct HostCost {
  double fixed = 0;    // of the anchor's rows
  double per_row = 0;  // of a row itself, and of the keys that all rows of the host see

  // The most tokens that cost at most `budget`: the root of b^2 / 2 + b * per_row + fixed = budget.
  int64_t TokensFor(double budget) const {
    if (budget <= fixed) return 0;
    return static_cast<int64_t>(std::sqrt(per_row * per_row + 2 * (budget - fixed)) - per_row);
  }
};

}  // namespace

std::vector<int64_t> BalancedShards(int64_t tokens, int hosts, int64_t anchor, int64_t passing,
                                    int64_t row_cost) {
  const double row = static_cast<double>(row_cost), seen = static_cast<double>(anchor);
  std::vector<HostCost> costs;
  for (int h = 0; h < hosts; ++h) {
    HostCost cost{.fixed = 0, .per_row = row + static_cast<double>(h * passing)};
    if (h > 0) cost = {.fixed = seen * (row + seen / 2), .per_row = cost.per_row + seen};
    costs.push_back(cost);
  }
  std::vector<int64_t> lengths(hosts);
  const auto total = [&](double budget) {
    for (int h = 0; h < hosts; ++h) lengths[h] = costs[h].TokensFor(budget);
    return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  };
  // Bisects for the largest budget that takes no more than `tokens` tokens. The cost of all tokens
  // on the first host bounds it.
  const double n = static_cast<double>(tokens);
  double enough = 0, too_much = (n + 1) * (row + n);
  for (int i = 0; i < 100; ++i) {
    const double middle = (enough + too_much) / 2;
    (total(middle) <= tokens ? enough : too_much) = middle;
  }
  const int64_t given = total(enough);
  lengths[0] += tokens - given;  // tokens that rounding down has left over
  return lengths;
}

}  // namespace apb::context_parallel
