// Goal: every Communicator moves the right bytes and counts them. Method: checks that each rank of
// a group runs, with ranks as threads and with ranks as MPI processes.
#pragma once

#include "engine/comm/agreement.h"
#include "engine/comm/communicator.h"
#include "kernels/backend.h"

namespace apb::comm {

using ReadyStream = HostStream;

// All ranks call it together. Failures are gtest failures of the calling thread.
void CheckCollectives(Communicator& communicator);

}  // namespace apb::comm
