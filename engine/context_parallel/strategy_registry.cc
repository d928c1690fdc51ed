#include "engine/context_parallel/strategy_registry.h"

#include <utility>

#include "engine/context_parallel/anchor_strategy.h"
#include "engine/context_parallel/ring_strategy.h"
#include "engine/context_parallel/ulysses_strategy.h"

namespace apb::context_parallel {

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateStrategy(
    std::span<const StrategyDocument> documents, const StrategyDeps& context,
    std::unique_ptr<Compressor> compressor, kernels::Stream& stream) {
  const ShardPlan& plan = *documents[0].plan;
  switch (plan.exchange) {
    case Exchange::kAnchor:
      return std::make_unique<AnchorStrategy>(plan, context.kv_heads, std::move(compressor),
                                              context.backend, context.communicator,
                                              context.overlap_passing);
    case Exchange::kNone:
    case Exchange::kRingKv:
    case Exchange::kRingQ:
    case Exchange::kTokenRing:
      return RingStrategy::Create(documents, context.cache, context.backend, context.communicator,
                                  stream);
    case Exchange::kUlysses:
      return UlyssesStrategy::Create(plan, context.query_heads, context.kv_heads, context.backend,
                                     context.communicator);
  }
  return absl::InternalError("a plan with an unknown exchange");
}

}  // namespace apb::context_parallel
