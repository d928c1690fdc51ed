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

class CudaStream;

// Whoever has given work of its own to a recording (a communicator) and wants to know when it is
// done again. The graph owns it.
class GraphParticipant {
 public:
  virtual ~GraphParticipant() = default;
  virtual void BeforeLaunch(CudaStream& stream) = 0;  // may fail the stream: no launch then
  virtual void AfterLaunch(CudaStream& stream) = 0;
};

// What a graph needs besides what CUDA recorded.
struct Recording {
  std::map<const void*, std::shared_ptr<GraphParticipant>> participants;  // by who made them
  std::shared_ptr<void> scratch;  // of the stream: the graph goes on to use it
};

class CudaStream : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create();
  ~CudaStream() override;

  absl::Status Synchronize() override;
  int64_t Mark() override;
  void AddSeconds(int64_t begin, int64_t end, double* total) override;

  cudaStream_t handle() const { return stream_; }
  // Fails the stream if a launch or an asynchronous call did not succeed.
  void Check(cudaError_t error, const char* operation);
  // Device memory for one operation; the next one may get the same. Null, and the stream fails,
  // when there is none.
  void* Scratch(size_t bytes);
  // While the stream records (CudaGraph) nothing is done, and an error belongs to the recording.
  // EndRecording returns the first one, and the stream is as before.
  void BeginRecording() { recording_.emplace(); }
  absl::StatusOr<Recording> EndRecording();
  bool recording() const { return recording_.has_value(); }
  // Of the recording under way.
  std::map<const void*, std::shared_ptr<GraphParticipant>>& participants() {
    return recording_->participants;
  }
  // Kernels write a number other than 0 here to fail the stream; memory that both sides see.
  int32_t* error_word() const { return error_word_; }
  // Synchronize returns what was set here before the stream came to its end.
  const std::shared_ptr<StreamFailure>& outside_failure() const { return outside_failure_; }

 private:
  CudaStream() = default;
  cudaStream_t stream_ = nullptr;
  int32_t* error_word_ = nullptr;
  std::shared_ptr<void> scratch_;  // also of the graphs that were recorded with it
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
