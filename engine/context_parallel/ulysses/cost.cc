#include "engine/context_parallel/cost.h"

#include <algorithm>

#include "engine/context_parallel/ulysses/ulysses.h"

namespace apb::context_parallel {

// In attention, a rank computes all tokens of some heads instead of some tokens of all heads.
Work UlyssesWork(const ShardPlan& plan, int ranks, int rank) {
  return {.rows = static_cast<double>(DocumentTokensOfRank(plan, ranks, rank)),
          .pairs = CausalPairs(static_cast<double>(plan.document_length())) / ranks};
}

// A rank sends queries, keys, values and outputs, each in one message to every other rank. No
// compute hides the transfers.
Traffic UlyssesTraffic(const TrafficCall& call) {
  const ModelShape& m = call.model;
  const double tokens = static_cast<double>(call.plan.document_length()), others = call.ranks - 1;
  const int64_t kv_share = std::max<int64_t>(1, m.kv_heads / call.ranks);
  const auto query_bytes = static_cast<double>(m.query_width() * m.element_bytes);
  const auto kv_bytes = static_cast<double>(2 * kv_share * m.head_dim * m.element_bytes);
  const double bytes = tokens * others * (2 * query_bytes / call.ranks + kv_bytes);
  return {4 * others * call.speed.link_latency_seconds +
              bytes / call.ranks / call.speed.link_bytes_per_second,
          bytes};
}

}  // namespace apb::context_parallel
