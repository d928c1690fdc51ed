#include "engine/context_parallel/cost.h"

#include <algorithm>

#include "engine/context_parallel/ring/ring.h"

namespace apb::context_parallel {
namespace {

int64_t RowsOfRank(int ranks, int64_t tokens) { return (tokens + ranks - 1) / ranks; }

// The part of a transfer's time that attention does not hide. Each step of the ring hides one
// transfer behind its share of the layer's attention.
double Exposed(const TrafficCall& call, double seconds) {
  return std::max(0.0, seconds - call.attention_seconds / call.ranks);
}

// The traffic that ring_q and token_ring have in common.
struct QueryTraffic {
  explicit QueryTraffic(const TrafficCall& call) {
    const ModelShape& m = call.model;
    const double tokens = static_cast<double>(call.plan.document_length());
    const auto partial = static_cast<double>(m.partial_bytes(1));
    forward = TransferSeconds(call.speed, static_cast<double>(QueryStepBytes(
                                              call.ranks, call.plan.document_length(), m)));
    home = TransferSeconds(call.speed, tokens / call.ranks * partial);
    bytes = (call.ranks - 1) * tokens *
            (static_cast<double>(m.query_width() * m.element_bytes) + partial);
  }
  // Seconds of one rank's queries to the next rank, and of their partial results to their owner.
  double forward = 0, home = 0;
  double bytes = 0;  // of queries and results, in all steps, sent by all ranks
};

}  // namespace

int64_t KeyStepBytes(int ranks, int64_t cached_tokens, int64_t new_tokens, const ModelShape& m) {
  return RowsOfRank(ranks, new_tokens + cached_tokens) * m.kv_width() * m.element_bytes;
}

int64_t QueryStepBytes(int ranks, int64_t new_tokens, const ModelShape& m) {
  return RowsOfRank(ranks, new_tokens) * m.query_width() * m.element_bytes;
}

Traffic RingKvTraffic(const TrafficCall& call) {
  const ModelShape& m = call.model;
  const int64_t tokens = call.plan.document_length();
  const double steps = call.ranks - 1, all = static_cast<double>(tokens + call.cached_tokens);
  const double forward = TransferSeconds(
      call.speed, static_cast<double>(KeyStepBytes(call.ranks, call.cached_tokens, tokens, m)));
  return {steps * Exposed(call, forward),
          steps * all * static_cast<double>(m.kv_width() * m.element_bytes)};
}

Traffic RingQTraffic(const TrafficCall& call) {
  const QueryTraffic queries(call);
  return {(call.ranks - 1) * (Exposed(call, queries.forward) + queries.home), queries.bytes};
}

// From the third step on, a partial result returns while the queries travel on. The last result has
// no attention to hide behind.
Traffic TokenRingTraffic(const TrafficCall& call) {
  const QueryTraffic queries(call);
  Traffic traffic{.bytes = queries.bytes};
  for (int s = 0; s + 1 < call.ranks; ++s) {
    traffic.waiting_seconds +=
        Exposed(call, s < 2 ? queries.forward : std::max(queries.forward, queries.home));
  }
  if (call.ranks > 2) traffic.waiting_seconds += Exposed(call, queries.home);
  traffic.waiting_seconds += queries.home;
  return traffic;
}

}  // namespace apb::context_parallel
