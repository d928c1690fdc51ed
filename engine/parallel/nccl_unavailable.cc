// Stands in for NCCL in a build without it.
#include "engine/parallel/nccl_communicator.h"

namespace apb::parallel {
namespace {
absl::Status NotBuilt() {
  return absl::UnavailableError("built without NCCL (install CUDA and NCCL and configure again)");
}
}  // namespace

absl::StatusOr<std::string> NewNcclId() { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions&) {
  return NotBuilt();
}

}  // namespace apb::parallel
