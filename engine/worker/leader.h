// Rank 0's loop: takes commands from the server, sends step plans to all ranks, sends events back
// to the server.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/worker/setup.h"

namespace apb::worker {

// An idle leader sends a plan (it asks for statistics) at least this often, so that followers
// notice when the leader is gone.
constexpr absl::Duration kStatsWhileIdle = absl::Seconds(5);

// Runs until the server asks for the end (Drain), the process is told to stop (`stop` becomes
// true), or an error occurs. Sends the followers their last plan unless there was an error.
absl::Status RunLeader(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine,
                       const std::atomic<bool>& stop);

}  // namespace apb::worker
