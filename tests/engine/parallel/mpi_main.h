// main() of tests that run under mpirun: every rank runs the same tests in the same order.
#pragma once

#include "engine/parallel/mpi_runtime.h"

namespace apb::parallel {
// Of this process, while tests run.
MpiRuntime& TestRuntime();
}  // namespace apb::parallel
