#include "engine/context_parallel/full/full.h"

#include "engine/context_parallel/ring/attend.h"

namespace apb::context_parallel {

ShardPlan FullPlan(const PromptLayout& layout, const StrategyOptions&) {
  ShardPlan plan{.hosts = {HostShard()}};
  if (layout.document_length > layout.cached_length)
    plan.hosts[0].local.push_back({layout.cached_length, layout.document_length});
  return plan;
}

int64_t FullPrefillBytes(const MemoryCall& call) { return RingStrategy::PositionBytes(call.plan); }

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateFull(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps,
    kernels::Stream& stream) {
  return RingStrategy::Create(documents, deps, RingStrategy::Travels::kNothing, stream);
}

}  // namespace apb::context_parallel
