#include "engine/context_parallel/cost.h"

#include <algorithm>

#include "engine/context_parallel/apb/apb.h"

namespace apb::context_parallel {

Work AnchorWork(const ShardPlan& plan, int ranks, int rank) {
  const HostRange hosts = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  Work work;
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

Traffic PassingTraffic(const TrafficCall& call) {
  int64_t longest = 0;
  for (const HostShard& host : call.plan.hosts) longest = std::max(longest, host.passing_length);
  if (longest == 0) return {};
  const double others = call.ranks - 1;
  const double part = static_cast<double>(call.plan.hosts.size()) / call.ranks *
                      static_cast<double>(longest) *
                      static_cast<double>(call.model.kv_width() * call.model.element_bytes);
  return {others * TransferSeconds(call.speed, part), call.ranks * others * part};
}

}  // namespace apb::context_parallel
