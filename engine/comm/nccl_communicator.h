// Communicator over NCCL, for device memory. Collectives run on a stream of their own; events order
// it with the caller's stream. Only Barrier blocks the calling thread. A watchdog thread gives up
// collectives that outlive the deadline or whose peers are gone (ncclCommAbort): the communicator
// is then broken for good, and streams that wait for it fail with kUnavailable. In a build without
// NCCL both functions return kUnavailable.
//
// Collectives can be recorded (kernels::Backend::Record), by all ranks together. The watchdog
// watches a graph's launch as a whole, from the moment when the stream reaches it. When the launch
// is done, stats() counts its calls and bytes, but not its seconds: they cannot be separated from
// the graph's other work. Graphs must be destroyed before the communicator, because NCCL waits for
// their end.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

// The id of a new group. One rank makes it and gives it to all other ranks by other means (MPI).
absl::StatusOr<std::string> NewNcclId();

struct NcclOptions {
  std::string id;
  int rank = 0;
  int size = 1;
  absl::Duration deadline = absl::Seconds(300);  // for connecting, and for each collective
};

// All ranks call it together, each with a GPU of its own as the thread's current device.
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options);

}  // namespace apb::comm
