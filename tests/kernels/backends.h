// The backends that kernel tests run on, by name. All take operands in host memory: a CUDA backend
// is wrapped, so the same test source checks every backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::kernels {

// Code paths of the CPU, and "cuda".
std::vector<std::string> TestBackendNames();

// kInvalidArgument or kUnavailable where this machine or this build lacks it. `threads` is for
// CPUs.
absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(std::string_view name, int threads);

// The float types that a backend computes in: f32 and bf16, and f16 on a device.
std::vector<DType> TypesOf(const Backend& backend);

// Seed of a test's random data: `fixed`, so that failures come again; another one where the
// environment has APB_TEST_SEED.
uint32_t TestSeed(uint32_t fixed);

// All that this machine has, with two threads.
std::vector<std::unique_ptr<Backend>> AllTestBackends();

}  // namespace apb::kernels
