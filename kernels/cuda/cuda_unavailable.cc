// Stands in for the CUDA backend in a build without CUDA.
#include "kernels/cuda/cuda_backend.h"

namespace apb::kernels {
namespace {
absl::Status NotBuilt() {
  return absl::UnavailableError(
      "built without CUDA (install the CUDA toolkit and configure with -DAPB_CUDA=ON)");
}
}  // namespace

absl::StatusOr<int> UsableCudaDevices() { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int) { return NotBuilt(); }
absl::StatusOr<int64_t> FreeCudaBytes() { return NotBuilt(); }

}  // namespace apb::kernels
