// The CUDA backend. In a build without CUDA the same functions exist and return kUnavailable.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::kernels {

// The number of GPUs that this process can use, at least one. kUnavailable, with the reason, if it
// was built without CUDA, or there is no driver, no GPU, or a GPU older than compute
// capability 8.0.
absl::StatusOr<int> UsableCudaDevices();

// A backend on GPU `device`, 0 <= device < UsableCudaDevices(). Makes the device the calling
// thread's current one; all later calls must come from that thread.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int device);

// Free memory of the calling thread's current device, in bytes.
absl::StatusOr<int64_t> FreeCudaBytes();

}  // namespace apb::kernels
