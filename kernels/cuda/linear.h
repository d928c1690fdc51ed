// Matrix products by cuBLASLt, with the algorithms of recent shapes kept.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::kernels::cuda {

class CudaLinear {
 public:
  static absl::StatusOr<std::unique_ptr<CudaLinear>> Create();
  ~CudaLinear();
  // As Backend::Linear, of checked arguments with at least one row.
  void Run(const LinearArgs& args, CudaStream& stream);

 private:
  struct Impl;
  explicit CudaLinear(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace apb::kernels::cuda
