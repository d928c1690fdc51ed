// A CUDA stream as a kernels::Stream.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::kernels::cuda {

// The status of a CUDA call; `what` names it.
absl::Status StatusOf(cudaError_t error, const char* what);

class CudaStream : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create();
  ~CudaStream() override;

  absl::Status Synchronize() override;

  cudaStream_t handle() const { return stream_; }
  bool failed() const { return !status_.ok(); }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // Fails the stream if a launch or an asynchronous call did not succeed.
  void Check(cudaError_t error, const char* operation);
  // Device memory for one operation; the next one may get the same. Null, and the stream fails, when
  // there is none.
  void* Scratch(size_t bytes);
  // Kernels write a number other than 0 here to fail the stream; memory that both sides see.
  int32_t* error_word() const { return error_word_; }

 private:
  CudaStream() = default;
  cudaStream_t stream_ = nullptr;
  int32_t* error_word_ = nullptr;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  absl::Status status_;
};

}  // namespace apb::kernels::cuda
