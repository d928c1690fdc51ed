// Measures how fast this group is, in a short run at start-up, for the cost model
// (engine/context_parallel/cost.h).
#pragma once

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/model/weights.h"

namespace apb::worker {

// The sizes of this rank's share of the model.
context_parallel::ModelShape ShapeOf(const model::Weights& weights);

// Times matrix products with layer 0's weights and one attention call, on all ranks at the same
// time, then messages of 64 KiB and of 4 MiB (64 MiB between devices) around the ring of ranks. All
// ranks call it together and get the same numbers: those of the slowest rank. Takes a few tenths of
// a second. In a group of one, the link speeds keep their defaults.
absl::StatusOr<context_parallel::MachineSpeed> Calibrate(const model::Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator& communicator);

}  // namespace apb::worker
