#include "engine/worker/device.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/comm/agreement.h"
#include "engine/comm/nccl_communicator.h"
#include "kernels/cuda/cuda_backend.h"

namespace apb::worker {
namespace {

using kernels::DType;
using kernels::TensorView;

int64_t AvailableMemoryBytes() {
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (in >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return int64_t{4} << 30;
}

// Creates a communicator over NCCL for the ranks of `over_mpi`, which carries NCCL's id to them.
absl::StatusOr<std::unique_ptr<comm::Communicator>> NcclBetween(comm::Communicator& over_mpi,
                                                                absl::Duration deadline) {
  constexpr int64_t kIdWords = 32;
  std::string id(kIdWords * sizeof(int32_t), '\0');
  if (over_mpi.rank() == 0) {
    APB_ASSIGN_OR_RETURN(id, comm::NewNcclId());
  }
  comm::HostStream stream;
  APB_RETURN_IF_ERROR(
      over_mpi.Broadcast(TensorView::Contiguous(id.data(), DType::kI32, {kIdWords}), 0, stream));
  return comm::CreateNcclCommunicator(
      {.id = id, .rank = over_mpi.rank(), .size = over_mpi.size(), .deadline = deadline});
}

absl::StatusOr<comm::Mesh> NcclMesh(comm::Mesh& over_mpi, absl::Duration deadline) {
  APB_ASSIGN_OR_RETURN(auto all, NcclBetween(over_mpi.all(), deadline));
  if (over_mpi.tensor() == nullptr) return comm::Mesh(std::move(all));
  APB_ASSIGN_OR_RETURN(auto context, NcclBetween(over_mpi.cp_group(), deadline));
  APB_ASSIGN_OR_RETURN(auto tensor, NcclBetween(*over_mpi.tensor(), deadline));
  return comm::Mesh(std::move(all), std::move(context), std::move(tensor));
}

// The number of usable GPUs of this machine. `auto` needs one for each rank here: NCCL refuses
// ranks that share a GPU unless its environment allows it. Users who ask for `cuda` may have set
// that.
absl::StatusOr<int> UsableGpus(const WorkerOptions& options, int ranks) {
  if (options.device == "cpu") return absl::UnavailableError("--device cpu");
  APB_ASSIGN_OR_RETURN(const int gpus, kernels::UsableCudaDevices());
  if (options.device == "auto" && ranks > gpus) {
    return absl::UnavailableError(
        absl::StrCat(ranks, " ranks on a machine with ", gpus, " usable GPUs"));
  }
  return gpus;
}

}  // namespace

absl::StatusOr<Device> ChooseDevice(const WorkerOptions& options, int threads,
                                    comm::MpiRuntime& mpi, comm::Communicator& control) {
  const absl::Duration deadline = absl::Seconds(options.collective_timeout_seconds);
  const absl::StatusOr<int> gpus = UsableGpus(options, mpi.local_size());
  APB_ASSIGN_OR_RETURN(const bool all_have_gpus, comm::AllAgree(control, gpus.ok()));
  if (options.device == "cuda") {
    APB_RETURN_IF_ERROR(gpus.status());
    if (!all_have_gpus) return absl::UnavailableError("--device cuda: another rank has no GPU");
  }
  Device device;
  APB_ASSIGN_OR_RETURN(comm::Mesh mesh, mpi.NewMesh(options.tensor_parallel, deadline));
  if (all_have_gpus) {
    APB_ASSIGN_OR_RETURN(device.backend, kernels::CreateCudaBackend(mpi.local_rank() % *gpus));
    device.ranks_on_it = (mpi.local_size() + *gpus - 1) / *gpus;
    APB_ASSIGN_OR_RETURN(mesh, NcclMesh(mesh, deadline));
  } else {
    if (options.device == "auto" && mpi.rank() == 0) {
      APB_LOG(
          Info, "computing on the CPU: ",
          gpus.ok() ? "another rank has no GPU of its own" : std::string(gpus.status().message()));
    }
    APB_ASSIGN_OR_RETURN(
        device.backend,
        kernels::CreateCpuBackend(
            {.threads = threads, .force_isa = options.cpu_isa == "auto" ? "" : options.cpu_isa}));
    device.ranks_on_it = mpi.local_size();
  }
  device.mesh = std::make_unique<comm::Mesh>(std::move(mesh));
  return device;
}

absl::StatusOr<int64_t> KvCacheBytes(const WorkerOptions& options, const Device& device) {
  if (device.backend->place() == kernels::Place::kCpu)
    return AvailableMemoryBytes() / 2 / device.ranks_on_it;
  APB_ASSIGN_OR_RETURN(const int64_t free, kernels::FreeCudaBytes());
  return static_cast<int64_t>(static_cast<double>(free) * options.gpu_memory_utilization) /
         device.ranks_on_it;
}

}  // namespace apb::worker
