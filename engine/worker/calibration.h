// How fast this group is: a short measurement at start-up, for the cost model
// (engine/context_parallel/cost.h).
#pragma once

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/model/weights.h"

namespace apb::worker {

context_parallel::ModelShape ShapeOf(const model::Weights& weights);

// Matrix products with layer 0's weights and one attention call on every rank at the same time,
// then messages of 64 KiB and 4 MiB around the ring of ranks. All ranks call it together and get
// the same numbers: the slowest rank's. Takes a few tenths of a second. The links of a group of one
// keep their defaults.
absl::StatusOr<context_parallel::MachineSpeed> Calibrate(const model::Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator& communicator);

}  // namespace apb::worker
