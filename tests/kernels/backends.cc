// The backends of this build and machine. The GPU (or the emulator) is one of them.
#include "tests/kernels/backends.h"

#include <cstdlib>

#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/host_operands.h"

namespace apb::kernels {

std::vector<std::string> TestBackendNames() {
#ifdef APB_HAS_CPU_BACKEND
  return {"amxbf16", "avx512bf16", "avx512vnni", "avx512", "avx2", "portable", "cuda"};
#else
  return {"cuda"};
#endif
}

absl::StatusOr<std::unique_ptr<Backend>> MakeTestBackend(std::string_view name,
                                                         [[maybe_unused]] int threads) {
  if (name == "cuda") {
    absl::StatusOr<std::unique_ptr<Backend>> device = CreateCudaBackend(0);
    if (!device.ok()) return device.status();
    return std::make_unique<HostOperands>(*std::move(device));
  }
#ifdef APB_HAS_CPU_BACKEND
  return CreateCpuBackend({.threads = threads, .force_isa = name});
#else
  return absl::UnavailableError("built without the CPU backend");
#endif
}

std::vector<DType> TypesOf(const Backend& backend) {
  if (backend.name().substr(0, 4) == "cpu/") return {DType::kF32, DType::kBF16};
  return {DType::kF32, DType::kBF16, DType::kF16};
}

uint32_t TestSeed(uint32_t fixed) {
  const char* other = std::getenv("APB_TEST_SEED");
  return other == nullptr ? fixed : fixed + static_cast<uint32_t>(std::strtoul(other, nullptr, 10));
}

std::vector<std::unique_ptr<Backend>> AllTestBackends() {
  std::vector<std::unique_ptr<Backend>> all;
  for (const std::string& name : TestBackendNames()) {
    absl::StatusOr<std::unique_ptr<Backend>> backend = MakeTestBackend(name, 2);
    if (backend.ok()) all.push_back(*std::move(backend));
  }
  return all;
}

}  // namespace apb::kernels
