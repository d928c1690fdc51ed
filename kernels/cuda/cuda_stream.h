// A CUDA stream as a kernels::Stream.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"

namespace apb::kernels::cuda {

// The status of a CUDA call; `what` names it.
absl::Status StatusOf(cudaError_t error, const char* what);

// A failure from another thread: the watchdog aborted a collective that the stream waits for.
// Thread-safe. The stream and the collective own it together.
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

class CudaStream;

// A communicator whose collectives are part of a recording, and that wants to know of each launch.
// The graph owns it.
class GraphParticipant {
 public:
  virtual ~GraphParticipant() = default;
  virtual void BeforeLaunch(
      CudaStream& stream) = 0;  // may fail the stream: then there is no launch
  virtual void AfterLaunch(CudaStream& stream) = 0;
};

// The objects that a graph needs besides CUDA's own recording.
struct Recording {
  std::map<const void*, std::shared_ptr<GraphParticipant>> participants;  // by owner
  std::shared_ptr<void> scratch;  // the stream's scratch, which the graph's kernels use
};

class CudaStream : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create();
  ~CudaStream() override;

  absl::Status Synchronize() override;
  int64_t Mark() override;
  void AddSeconds(int64_t begin, int64_t end, double* total) override;

  cudaStream_t handle() const { return stream_; }
  // Makes the stream fail if a launch or an asynchronous call returned an error.
  void Check(cudaError_t error, const char* operation);
  // Device memory for one operation; the next operation may get the same memory. Null, and the
  // stream fails, if there is not enough.
  void* Scratch(size_t bytes);
  // Between these calls (CudaGraph) the stream records work instead of doing it. EndRecording
  // returns the first error meanwhile, which does not make the stream fail.
  void BeginRecording() { recording_.emplace(); }
  absl::StatusOr<Recording> EndRecording();
  bool recording() const { return recording_.has_value(); }
  // The participants of the current recording.
  std::map<const void*, std::shared_ptr<GraphParticipant>>& participants() {
    return recording_->participants;
  }
  // Kernels write a number other than 0 here to make the stream fail. Mapped CPU memory.
  int32_t* error_word() const { return error_word_; }
  // Synchronize returns an error that was set here before the stream's work ended.
  const std::shared_ptr<StreamFailure>& outside_failure() const { return outside_failure_; }

 private:
  CudaStream() = default;
  cudaStream_t stream_ = nullptr;
  int32_t* error_word_ = nullptr;
  std::shared_ptr<void> scratch_;  // shared with the graphs that were recorded with it
  size_t scratch_bytes_ = 0;
  struct Span {
    int64_t begin, end;
    double* total;
  };
  std::vector<cudaEvent_t> marks_;  // the first marks_used_ are recorded
  size_t marks_used_ = 0;
  std::vector<Span> spans_;
  std::optional<Recording> recording_;
  const std::shared_ptr<StreamFailure> outside_failure_ = std::make_shared<StreamFailure>();
};

}  // namespace apb::kernels::cuda
