// The CUDA backend. In a build without CUDA the same functions exist and return kUnavailable.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::kernels {

// GPUs that this process can use, at least one. kUnavailable with the reason otherwise: built
// without CUDA, no driver, no GPU, or a GPU older than compute capability 8.0.
absl::StatusOr<int> UsableCudaDevices();

// A backend on GPU `device`, 0 <= device < UsableCudaDevices(). It makes the device the calling
// thread's current one; all calls come from that thread.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int device);

// Memory of the calling thread's device that nobody uses.
absl::StatusOr<int64_t> FreeCudaBytes();

}  // namespace apb::kernels
