// The main function of benches under mpirun, after their options have been read.
#pragma once

#include <algorithm>
#include <cstdio>
#include <thread>

#include "absl/status/status.h"
#include "engine/comm/mpi_runtime.h"

namespace apb::bench {

// Calls run(options, runtime) on every rank and returns the program's exit code. options.threads 0
// becomes this machine's cores divided by its ranks.
template <typename Options, typename Function>
int RunUnderMpi(int argc, char** argv, const char* name, Options& options, const Function& run) {
  auto runtime = comm::MpiRuntime::Start(&argc, &argv);
  if (!runtime.ok()) {
    std::fprintf(stderr, "%s: %s\n", name, runtime.status().ToString().c_str());
    return 1;
  }
  if (options.threads == 0) {
    options.threads = std::max(
        1, static_cast<int>(std::thread::hardware_concurrency()) / (*runtime)->local_size());
  }
  if (const absl::Status status = run(options, **runtime); !status.ok()) {
    std::fprintf(stderr, "%s: rank %d: %s\n", name, (*runtime)->rank(), status.ToString().c_str());
    comm::MpiRuntime::AbortGroup(1);
  }
  return 0;
}

}  // namespace apb::bench
