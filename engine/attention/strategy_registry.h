// The tensor half of the registry: from a plan to the object that attends as it says.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/attention/compressor.h"
#include "engine/attention/strategy.h"

namespace apb::attention {

// The plan must outlive the strategy. `compressor` may be null where the plan passes nothing on.
absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateStrategy(
    const ShardPlan& plan, int64_t query_heads, int64_t kv_heads,
    std::unique_ptr<Compressor> compressor, kernels::Backend& backend,
    parallel::Communicator& communicator);

}  // namespace apb::attention
