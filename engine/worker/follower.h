// The loop of every rank but 0: wait for a plan, execute it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/worker/setup.h"

namespace apb::worker {

// Returns after the last plan (StepPlan::shutdown), or with the first error.
absl::Status RunFollower(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine);

// This rank's counters as a serialised cluster.v1.RankStats.
std::string SerializedRankStats(const comm::MpiRuntime& mpi,
                                const executor::StepExecutor& executor);

}  // namespace apb::worker
