// Where the ranks of a group compute: all on CPUs with MPI between them, or all on GPUs with NCCL.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/comm/mpi_runtime.h"
#include "engine/worker/options.h"
#include "kernels/backend.h"

namespace apb::worker {

struct Device {
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<comm::Mesh> mesh;  // takes views of the backend's memory
  int ranks_on_it = 1;               // that share its memory
};

// As options.device says; `auto` takes GPUs where every rank has one of its own. All ranks call it
// together and come to the same end. `control` is over all ranks.
absl::StatusOr<Device> ChooseDevice(const WorkerOptions& options, int threads,
                                    comm::MpiRuntime& mpi, comm::Communicator& control);

// Bytes for the KV cache of one rank: half of the machine's free memory, or the share
// options.gpu_memory_utilization of the GPU's, divided among the ranks there.
absl::StatusOr<int64_t> KvCacheBytes(const WorkerOptions& options, const Device& device);

}  // namespace apb::worker
