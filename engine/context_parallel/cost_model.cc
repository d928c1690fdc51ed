#include "engine/context_parallel/cost_model.h"

#include <algorithm>
#include <cmath>

namespace apb::context_parallel {
namespace {

double Bytes(int64_t numbers, const ModelShape& model) {
  return static_cast<double>(numbers * model.element_bytes);
}

int64_t QueryWidth(const ModelShape& m) { return m.query_heads * m.head_dim; }
int64_t KvWidth(const ModelShape& m) { return 2 * m.kv_heads * m.head_dim; }  // K and V

// A partial result: out and lse of all heads, float32.
double PartialBytes(const ModelShape& m) {
  return static_cast<double>(m.query_heads * (m.head_dim + 1) * 4);
}

double KvProjectionFlops(const ModelShape& m) {
  return 2.0 * static_cast<double>(m.hidden_size * KvWidth(m));
}

// Projections and MLP of one row in one layer.
double RowFlops(const ModelShape& m) {
  return KvProjectionFlops(m) +
         2.0 * static_cast<double>(m.hidden_size * (2 * QueryWidth(m) + 3 * m.mlp_size));
}

double ScoreFlops(const ModelShape& m) {
  return 2.0 * static_cast<double>(m.retaining_width * (QueryWidth(m) + KvWidth(m) + m.kv_heads));
}

double PairFlops(const ModelShape& m) { return 4.0 * static_cast<double>(QueryWidth(m)); }

// What one rank computes, of one layer.
struct RankWork {
  double rows = 0;         // anchor included
  double scored_rows = 0;  // of which some are passed on
  double pairs = 0;        // of queries and keys that they see
};

double CausalPairs(double rows) { return rows * (rows + 1) / 2; }

// Of apb and star. `query_aware` makes rank 0 compute the anchor too, which is left out.
RankWork AnchorWork(const ShardPlan& plan, const HostRange& hosts) {
  RankWork work;
  double passed = 0;
  const double anchor = static_cast<double>(plan.anchor.size());
  bool has_anchor = false;
  for (int h = 0; h < hosts.last; ++h) {
    const HostShard& host = plan.hosts[h];
    if (h >= hosts.first) {
      const double rows = static_cast<double>(host.local_length());
      work.rows += rows;
      if (host.passing_length > 0) work.scored_rows += rows;
      work.pairs += CausalPairs(rows) + rows * (passed + (host.sees_anchor ? anchor : 0));
      has_anchor |= host.sees_anchor;
    }
    passed += static_cast<double>(host.passing_length);
  }
  if (has_anchor) {
    work.rows += anchor;
    work.pairs += CausalPairs(anchor);
  }
  return work;
}

RankWork WorkOf(const ShardPlan& plan, int ranks, int rank) {
  const HostRange hosts = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  if (plan.exchange == Exchange::kAnchor) return AnchorWork(plan, hosts);
  RankWork work;
  for (int h = hosts.first; h < hosts.last; ++h) {
    for (const TokenSpan& span : plan.hosts[h].local) {  // a row sees all positions up to its own
      work.rows += static_cast<double>(span.length());
      work.pairs +=
          CausalPairs(static_cast<double>(span.end)) - CausalPairs(static_cast<double>(span.begin));
    }
  }
  // All tokens of some heads, instead of some tokens of all heads.
  if (plan.exchange == Exchange::kUlysses)
    work.pairs = CausalPairs(static_cast<double>(plan.document_length())) / ranks;
  return work;
}

// Longest time that a rank waits for links in one layer, and what all ranks send in it.
struct Traffic {
  double waiting_seconds = 0;
  double bytes = 0;
};

// `step` seconds of attention hide one transfer of each step.
Traffic RingTraffic(const ShardPlan& plan, int ranks, int64_t cached_tokens, double step,
                    const ModelShape& m, const MachineSpeed& speed) {
  const auto transfer = [&](double bytes) {
    return speed.link_latency_seconds + bytes / speed.link_bytes_per_second;
  };
  const double tokens = static_cast<double>(plan.document_length()), steps = ranks - 1;
  const double step_bytes = static_cast<double>(
      RingStepBytes(plan.exchange, ranks, cached_tokens, plan.document_length(), m));
  const double forward = transfer(step_bytes), home = transfer(tokens / ranks * PartialBytes(m));
  const auto exposed = [&](double seconds) { return std::max(0.0, seconds - step); };
  if (plan.exchange == Exchange::kRingKv) {
    const double all = tokens + static_cast<double>(cached_tokens);
    return {steps * exposed(forward), steps * all * Bytes(KvWidth(m), m)};
  }
  Traffic traffic;
  traffic.bytes = steps * tokens * (Bytes(QueryWidth(m), m) + PartialBytes(m));
  if (plan.exchange == Exchange::kRingQ) {
    traffic.waiting_seconds = steps * (exposed(forward) + home);
    return traffic;
  }
  // token_ring: from the third step on a partial result returns while queries go on; the last one
  // has nothing to hide behind.
  for (int s = 0; s + 1 < ranks; ++s)
    traffic.waiting_seconds += exposed(s < 2 ? forward : std::max(forward, home));
  if (ranks > 2) traffic.waiting_seconds += exposed(home);
  traffic.waiting_seconds += home;
  return traffic;
}

// Queries, keys, values and outputs, one message to each other rank; nothing is hidden.
Traffic UlyssesTraffic(const ShardPlan& plan, int ranks, const ModelShape& m,
                       const MachineSpeed& speed) {
  const double tokens = static_cast<double>(plan.document_length()), others = ranks - 1;
  const int64_t kv_share = std::max<int64_t>(1, m.kv_heads / ranks);
  const double bytes =
      tokens * others * (2 * Bytes(QueryWidth(m), m) / ranks + Bytes(2 * kv_share * m.head_dim, m));
  return {4 * others * speed.link_latency_seconds + bytes / ranks / speed.link_bytes_per_second,
          bytes};
}

// The AllGather of what is passed on: all ranks' parts are as long as the longest.
Traffic PassingTraffic(const ShardPlan& plan, int ranks, const ModelShape& m,
                       const MachineSpeed& speed) {
  int64_t longest = 0;
  for (const HostShard& host : plan.hosts) longest = std::max(longest, host.passing_length);
  if (longest == 0) return {};
  const double others = ranks - 1;
  const double part = static_cast<double>(plan.hosts.size()) / ranks *
                      static_cast<double>(longest) * Bytes(KvWidth(m), m);
  return {others * (speed.link_latency_seconds + part / speed.link_bytes_per_second),
          ranks * others * part};
}

}  // namespace

PrefillCost PredictPrefill(const ShardPlan& plan, int ranks, int64_t cached_tokens,
                           const ModelShape& m, const MachineSpeed& speed) {
  PrefillCost cost;
  const double whole_layers = m.layers - 1;
  double slowest_attention = 0;  // of one layer
  for (int rank = 0; rank < ranks; ++rank) {
    const RankWork work = WorkOf(plan, ranks, rank);
    const double attention = work.pairs * PairFlops(m) / speed.attention_flops;
    const double products = work.rows * RowFlops(m) + work.scored_rows * ScoreFlops(m);
    const double last = work.rows * KvProjectionFlops(m) / speed.product_flops;
    cost.compute_seconds.push_back(whole_layers * (products / speed.product_flops + attention) +
                                   last);
    slowest_attention = std::max(slowest_attention, attention);
  }
  cost.seconds = *std::max_element(cost.compute_seconds.begin(), cost.compute_seconds.end());
  if (ranks == 1 || plan.document_length() == 0) return cost;
  Traffic layer;
  switch (plan.exchange) {
    case Exchange::kNone:
      break;
    case Exchange::kAnchor:
      layer = PassingTraffic(plan, ranks, m, speed);
      break;
    case Exchange::kUlysses:
      layer = UlyssesTraffic(plan, ranks, m, speed);
      break;
    case Exchange::kRingKv:
    case Exchange::kRingQ:
    case Exchange::kTokenRing:
      layer = RingTraffic(plan, ranks, cached_tokens, slowest_attention / ranks, m, speed);
      break;
  }
  cost.waiting_seconds = whole_layers * layer.waiting_seconds;
  cost.bytes_sent = std::llround(whole_layers * layer.bytes);
  cost.seconds += cost.waiting_seconds;
  return cost;
}

int64_t RingStepBytes(Exchange exchange, int ranks, int64_t cached_tokens, int64_t new_tokens,
                      const ModelShape& m) {
  const bool keys = exchange == Exchange::kRingKv;
  const int64_t tokens = new_tokens + (keys ? cached_tokens : 0);
  return (tokens + ranks - 1) / ranks * (keys ? KvWidth(m) : QueryWidth(m)) * m.element_bytes;
}

int64_t RowCostInPairs(const ModelShape& m, const MachineSpeed& speed) {
  const double row = (RowFlops(m) + ScoreFlops(m)) / speed.product_flops;
  const double pairs = row / (PairFlops(m) / speed.attention_flops);
  return int64_t{1} << std::clamp<int64_t>(std::llround(std::log2(pairs)), 0, 30);
}

}  // namespace apb::context_parallel
