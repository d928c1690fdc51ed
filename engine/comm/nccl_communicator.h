// Communicator over NCCL, for device memory. Collectives run on a stream of their own, ordered with
// the caller's by events; no call waits on the host but Barrier. A watchdog thread gives up
// collectives that outlive the deadline or whose peers are gone (ncclCommAbort): the communicator
// is broken for good then, and streams that wait for it fail with kUnavailable. In a build without
// NCCL both functions return kUnavailable.
//
// Collectives can be recorded (kernels::Backend::Record), by all ranks together. A launch is
// watched as a whole, from where the stream comes to it; stats() counts its calls and bytes when it
// is done, but not its seconds, which cannot be told from those of the other work in the graph.
// Graphs must end before the communicator: NCCL waits for that.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

// The id of a new group. One rank makes it, and all get it by another way.
absl::StatusOr<std::string> NewNcclId();

struct NcclOptions {
  std::string id;
  int rank = 0;
  int size = 1;
  absl::Duration deadline = absl::Seconds(300);  // of the meeting, and of each collective
};

// All ranks call it together, each with its GPU as the thread's current device and its own one.
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options);

}  // namespace apb::comm
