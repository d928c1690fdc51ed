// What every Communicator must do, as a list of checks that each rank runs: used with ranks as
// threads and with ranks as MPI processes.
#pragma once

#include "engine/comm/communicator.h"
#include "kernels/backend.h"

namespace apb::comm {

// A host stream on which nothing is ever pending.
class ReadyStream : public kernels::Stream {
 public:
  absl::Status Synchronize() override { return status_; }
};

// All ranks call it; failures are gtest failures of the calling thread.
void CheckCollectives(Communicator& communicator);

}  // namespace apb::comm
