#include "engine/context_parallel/cost.h"

#include <algorithm>
#include <cmath>

namespace apb::context_parallel {
namespace {

double KvProjectionFlops(const ModelShape& m) {
  return 2.0 * static_cast<double>(m.hidden_size * m.kv_width());
}

// Projections and MLP of one row in one layer.
double RowFlops(const ModelShape& m) {
  return KvProjectionFlops(m) +
         2.0 * static_cast<double>(m.hidden_size * (2 * m.query_width() + 3 * m.mlp_size));
}

double ScoreFlops(const ModelShape& m) {
  return 2.0 *
         static_cast<double>(m.retaining_width * (m.query_width() + m.kv_width() + m.kv_heads));
}

double PairFlops(const ModelShape& m) { return 4.0 * static_cast<double>(m.query_width()); }

}  // namespace

PrefillCost PredictPrefill(const ShardPlan& plan, int ranks, int64_t cached_tokens,
                           const ModelShape& m, const MachineSpeed& speed) {
  PrefillCost cost;
  const double whole_layers = m.layers - 1;
  double slowest_attention = 0;  // seconds of one layer
  for (int rank = 0; rank < ranks; ++rank) {
    const Work work = plan.strategy->work(plan, ranks, rank);
    const double attention = work.pairs * PairFlops(m) / speed.attention_flops;
    const double products = work.rows * RowFlops(m) + work.scored_rows * ScoreFlops(m);
    const double last = work.rows * KvProjectionFlops(m) / speed.product_flops;
    cost.compute_seconds.push_back(whole_layers * (products / speed.product_flops + attention) +
                                   last);
    slowest_attention = std::max(slowest_attention, attention);
  }
  cost.seconds = *std::max_element(cost.compute_seconds.begin(), cost.compute_seconds.end());
  if (ranks == 1 || plan.document_length() == 0) return cost;
  const Traffic layer = plan.strategy->traffic({.plan = plan,
                                                .ranks = ranks,
                                                .cached_tokens = cached_tokens,
                                                .attention_seconds = slowest_attention,
                                                .model = m,
                                                .speed = speed});
  cost.waiting_seconds = whole_layers * layer.waiting_seconds;
  cost.bytes_sent = std::llround(whole_layers * layer.bytes);
  cost.seconds += cost.waiting_seconds;
  return cost;
}

Work CausalWork(const ShardPlan& plan, int ranks, int rank) {
  const HostRange hosts = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  Work work;
  for (int h = hosts.first; h < hosts.last; ++h) {
    for (const TokenSpan& span : plan.hosts[h].local) {
      work.rows += static_cast<double>(span.length());
      work.pairs +=
          CausalPairs(static_cast<double>(span.end)) - CausalPairs(static_cast<double>(span.begin));
    }
  }
  return work;
}

int64_t RowCostInPairs(const ModelShape& m, const MachineSpeed& speed) {
  const double row = (RowFlops(m) + ScoreFlops(m)) / speed.product_flops;
  const double pairs = row / (PairFlops(m) / speed.attention_flops);
  return int64_t{1} << std::clamp<int64_t>(std::llround(std::log2(pairs)), 0, 30);
}

}  // namespace apb::context_parallel
