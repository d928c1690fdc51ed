// Matrix products by cuBLASLt. Keeps the algorithms of recent shapes.
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
  // Backend::Linear for checked arguments with at least one row. Errors make the stream fail.
  void Run(const LinearArgs& args, CudaStream& stream);

 private:
  struct Impl;
  explicit CudaLinear(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace apb::kernels::cuda
