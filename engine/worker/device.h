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
  std::unique_ptr<comm::Mesh> mesh;  // its communicators take views of the backend's memory
  int ranks_on_it = 1;               // ranks that share the memory of this device
};

// Chooses the device by options.device; `auto` takes GPUs if every rank has one of its own. All
// ranks call it together and choose alike. `control` spans all ranks. kUnavailable: `cuda` was
// asked for, and a rank has no usable GPU.
absl::StatusOr<Device> ChooseDevice(const WorkerOptions& options, int threads,
                                    comm::MpiRuntime& mpi, comm::Communicator& control);

// Bytes for the KV cache of one rank: its share of half of the machine's free memory, or of the
// fraction options.gpu_memory_utilization of the GPU's free memory.
absl::StatusOr<int64_t> KvCacheBytes(const WorkerOptions& options, const Device& device);

}  // namespace apb::worker
