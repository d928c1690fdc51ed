// The backends that kernel tests run on, by name. All take operands in CPU memory (a CUDA backend
// is wrapped), so that the same test checks every backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::kernels {

// The CPU's code paths, and "cuda".
std::vector<std::string> TestBackendNames();

// kInvalidArgument or kUnavailable if this machine or this build lacks the backend. `threads` is
// for CPU backends.
absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(std::string_view name, int threads);

// The float types that a backend computes in: f32 and bf16; on a device also f16.
std::vector<DType> TypesOf(const Backend& backend);

// The seed of a test's random data: `fixed`, so that failures are reproducible, plus the
// environment's APB_TEST_SEED.
uint32_t TestSeed(uint32_t fixed);

// All backends that this machine has, with two threads.
std::vector<std::unique_ptr<Backend>> AllTestBackends();

}  // namespace apb::kernels
