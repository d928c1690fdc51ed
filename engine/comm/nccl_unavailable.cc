// The functions of nccl_communicator.h in a build without NCCL.
#include "engine/comm/nccl_communicator.h"

namespace apb::comm {
namespace {
absl::Status NotBuilt() {
  return absl::UnavailableError("built without NCCL (install CUDA and NCCL and configure again)");
}
}  // namespace

absl::StatusOr<std::string> NewNcclId() { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions&) {
  return NotBuilt();
}

}  // namespace apb::comm
