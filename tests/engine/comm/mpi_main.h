// main() of tests that run under mpirun: every rank runs the same tests in the same order.
#pragma once

#include "engine/comm/mpi_runtime.h"

namespace apb::comm {
// Of this process, while tests run.
MpiRuntime& TestRuntime();
}  // namespace apb::comm
