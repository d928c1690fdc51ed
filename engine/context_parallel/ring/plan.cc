#include <algorithm>

#include "engine/context_parallel/ring/ring.h"

namespace apb::context_parallel {

ShardPlan ZigzagPlan(const PromptLayout& layout, const StrategyOptions& options) {
  const int64_t begin = layout.cached_length, end = layout.document_length;
  const int64_t chunks = int64_t{2} * options.hosts, chunk = (end - begin + chunks - 1) / chunks;
  ShardPlan plan;
  for (int h = 0; h < options.hosts; ++h) {
    HostShard shard;
    for (const int64_t c : {int64_t{h}, chunks - 1 - h}) {
      const TokenSpan span{std::min(end, begin + c * chunk),
                           std::min(end, begin + (c + 1) * chunk)};
      if (span.length() > 0) shard.local.push_back(span);
    }
    plan.hosts.push_back(shard);
  }
  return plan;
}

}  // namespace apb::context_parallel
