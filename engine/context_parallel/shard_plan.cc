#include "engine/context_parallel/shard_plan.h"

#include "absl/strings/str_cat.h"

namespace apb::context_parallel {

int64_t ShardPlan::document_length() const {
  int64_t n = 0;
  for (const HostShard& host : hosts) n += host.local_length();
  return n;
}

std::string ShardPlan::DebugString() const {
  std::string text = absl::StrCat("anchor=", anchor.size());
  for (size_t h = 0; h < hosts.size(); ++h) {
    absl::StrAppend(&text, " host", h, "=");
    for (const TokenSpan& span : hosts[h].local)
      absl::StrAppend(&text, "[", span.begin, ",", span.end, ")");
    absl::StrAppend(&text, hosts[h].sees_anchor ? "+anchor" : "", " passes ",
                    hosts[h].passing_length);
  }
  return text;
}

HostRange HostsOfRank(int hosts, int ranks, int rank) {
  // Fewer hosts than ranks: the last ranks play none.
  if (hosts < ranks) return rank < hosts ? HostRange{rank, rank + 1} : HostRange{hosts, hosts};
  return {static_cast<int>(static_cast<int64_t>(rank) * hosts / ranks),
          static_cast<int>(static_cast<int64_t>(rank + 1) * hosts / ranks)};
}

}  // namespace apb::context_parallel
