// What every rank does before the first step: chooses threads and device, loads its weights, sizes
// the KV cache, measures its speed.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/comm/mpi_runtime.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/executor/step_executor.h"
#include "engine/worker/device.h"
#include "engine/worker/options.h"

namespace apb::worker {

struct Engine {
  Device device;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<executor::StepExecutor> executor;
  cache::KvCacheShape shape;  // of one rank; block_count is the same on every rank
  int64_t max_model_len = 0;  // prompt + completion tokens that fit this group
  int64_t prefill_bytes = 0;  // memory for a prefill on each rank; 0: unlimited (CPUs)
  double load_seconds = 0;
  context_parallel::MachineSpeed speed;  // measured, or the defaults
};

// All ranks call it together. An error on one rank is an error on all of them, each with its own
// message.
absl::StatusOr<Engine> SetUp(const WorkerOptions& options, comm::MpiRuntime& mpi);

}  // namespace apb::worker
