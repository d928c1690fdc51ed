// Rank 0's loop: commands in, step plans out to all ranks, events back to the server.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/worker/setup.h"

namespace apb::worker {

// An idle leader sends a plan at least this often (it asks for statistics), so that followers
// notice when it is gone.
constexpr absl::Duration kStatsWhileIdle = absl::Seconds(5);

// Runs until the server asks for the end (Drain), the process is told to stop (`stop` becomes
// true), or something fails; sends the followers their last plan unless something failed.
absl::Status RunLeader(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine,
                       const std::atomic<bool>& stop);

}  // namespace apb::worker
