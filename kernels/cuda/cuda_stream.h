// A CUDA stream as a kernels::Stream.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"

namespace apb::kernels::cuda {

// The status of a CUDA call; `what` names it.
absl::Status StatusOf(cudaError_t error, const char* what);

// A failure that comes from outside of the stream's thread: a collective that the stream waits for
// and that was given up. Thread-safe. Owners: the stream and the collective.
class StreamFailure {
 public:
  void Set(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = status;
  }
  absl::Status Get() const {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class CudaStream : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create();
  ~CudaStream() override;

  absl::Status Synchronize() override;
  int64_t Mark() override;
  void AddSeconds(int64_t begin, int64_t end, double* total) override;

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
  // Synchronize returns what was set here before the stream came to its end.
  const std::shared_ptr<StreamFailure>& outside_failure() const { return outside_failure_; }

 private:
  CudaStream() = default;
  cudaStream_t stream_ = nullptr;
  int32_t* error_word_ = nullptr;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  struct Span {
    int64_t begin, end;
    double* total;
  };
  std::vector<cudaEvent_t> marks_;  // the first marks_used_ are recorded
  size_t marks_used_ = 0;
  std::vector<Span> spans_;
  absl::Status status_;
  const std::shared_ptr<StreamFailure> outside_failure_ = std::make_shared<StreamFailure>();
};

}  // namespace apb::kernels::cuda
