#include "engine/attention/strategy_registry.h"

#include <utility>

#include "engine/attention/anchor_strategy.h"
#include "engine/attention/ring_strategy.h"
#include "engine/attention/ulysses_strategy.h"

namespace apb::attention {

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateStrategy(
    const ShardPlan& plan, int64_t query_heads, int64_t kv_heads,
    std::unique_ptr<Compressor> compressor, kernels::Backend& backend,
    parallel::Communicator& communicator) {
  switch (plan.exchange) {
    case Exchange::kAnchor:
      return std::make_unique<AnchorStrategy>(plan, kv_heads, std::move(compressor), backend,
                                              communicator);
    case Exchange::kRingKv:
    case Exchange::kRingQ:
    case Exchange::kTokenRing:
      return RingStrategy::Create(plan, backend, communicator);
    case Exchange::kUlysses:
      return UlyssesStrategy::Create(plan, query_heads, kv_heads, backend, communicator);
  }
  return absl::InternalError("a plan with an unknown exchange");
}

}  // namespace apb::attention
