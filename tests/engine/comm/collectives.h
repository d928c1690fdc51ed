// What every Communicator must do, as a list of checks that each rank runs: used with ranks as
// threads and with ranks as MPI processes.
#pragma once

#include "engine/comm/agreement.h"
#include "engine/comm/communicator.h"
#include "kernels/backend.h"

namespace apb::comm {

using ReadyStream = HostStream;

// All ranks call it; failures are gtest failures of the calling thread.
void CheckCollectives(Communicator& communicator);

}  // namespace apb::comm
