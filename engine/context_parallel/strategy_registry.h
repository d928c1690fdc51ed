// The tensor half of the registry: from plans to the object that attends as they say.
#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "engine/cache/paged_kv_cache.h"
#include "engine/context_parallel/compressor.h"
#include "engine/context_parallel/strategy.h"

namespace apb::context_parallel {

// What a strategy computes with; everything outlives it.
struct StrategyDeps {
  int64_t query_heads = 0, kv_heads = 0;
  const cache::PagedKvCache& cache;
  kernels::Backend& backend;
  comm::Communicator& communicator;
  bool overlap_passing = false;  // AnchorStrategy
};

// All ranks call it together. Several documents, and cached prefixes, only where CanBatch allows
// them. `compressor` may be null where the plan passes nothing on.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateStrategy(
    std::span<const StrategyDocument> documents, const StrategyDeps& context,
    std::unique_ptr<Compressor> compressor, kernels::Stream& stream);

}  // namespace apb::context_parallel
