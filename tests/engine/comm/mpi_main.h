// main() of tests that run under mpirun. Every rank runs the same tests in the same order.
#pragma once

#include "engine/comm/mpi_runtime.h"

namespace apb::comm {
// The MPI runtime of this process. Valid while tests run.
MpiRuntime& TestRuntime();
}  // namespace apb::comm
