// Errors, marks and scratch memory of CUDA streams.
#include "kernels/cuda/cuda_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace apb::kernels::cuda {

absl::Status StatusOf(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver)
    return absl::UnavailableError(text);
  return absl::InternalError(text);
}

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create() {
  std::unique_ptr<CudaStream> stream(new CudaStream());
  // Non-blocking: it does not synchronize with the legacy default stream.
  absl::Status status =
      StatusOf(cudaStreamCreateWithFlags(&stream->stream_, cudaStreamNonBlocking), "new stream");
  if (!status.ok()) return status;
  void* word = nullptr;
  status = StatusOf(cudaHostAlloc(&word, sizeof(int32_t), cudaHostAllocMapped), "new stream");
  if (!status.ok()) return status;
  stream->error_word_ = static_cast<int32_t*>(word);
  *stream->error_word_ = 0;
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const cudaEvent_t mark : marks_) cudaEventDestroy(mark);
  scratch_.reset();
  if (error_word_ != nullptr) cudaFreeHost(error_word_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaStream::Check(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which a later call would return again
  Fail(StatusOf(error, operation));
}

absl::Status CudaStream::Synchronize() {
  const cudaError_t error = cudaStreamSynchronize(stream_);
  // This failure comes first, because it is the cause: work behind an aborted collective may fail
  // too.
  Fail(outside_failure_->Get());
  Check(error, "stream");
  if (*error_word_ != 0)
    Fail(absl::InternalError("Embedding: a token id is outside the vocabulary"));
  for (const Span& span : spans_) {
    float milliseconds = 0;
    if (!failed())
      Check(cudaEventElapsedTime(&milliseconds, marks_[span.begin], marks_[span.end]), "time");
    *span.total += milliseconds * 1e-3;
  }
  spans_.clear();
  marks_used_ = 0;
  return status_;
}

int64_t CudaStream::Mark() {
  if (recording()) return -1;  // recorded work has no time
  if (marks_used_ == marks_.size()) {
    cudaEvent_t event = nullptr;
    Check(cudaEventCreate(&event), "time");
    if (event == nullptr) return -1;  // the stream has failed
    marks_.push_back(event);
  }
  Check(cudaEventRecord(marks_[marks_used_], stream_), "time");
  return static_cast<int64_t>(marks_used_++);
}

void CudaStream::AddSeconds(int64_t begin, int64_t end, double* total) {
  if (begin >= 0 && end >= 0) spans_.push_back({begin, end, total});
}

void* CudaStream::Scratch(size_t bytes) {
  if (bytes > scratch_bytes_ || scratch_ == nullptr) {
    if (recording()) {
      Fail(absl::FailedPreconditionError("an operation is recorded that was not done before"));
      return nullptr;
    }
    scratch_.reset();
    scratch_bytes_ = bytes + bytes / 4 + 256;
    void* memory = nullptr;
    Check(cudaMallocAsync(&memory, scratch_bytes_, stream_), "scratch");
    if (failed()) return nullptr;
    // Freed in stream order, so that operations in flight keep their scratch.
    scratch_ = std::shared_ptr<void>(memory, [this](void* p) { cudaFreeAsync(p, stream_); });
  }
  return scratch_.get();
}

absl::StatusOr<Recording> CudaStream::EndRecording() {
  Recording recording = *std::exchange(recording_, std::nullopt);
  recording.scratch = scratch_;
  const absl::Status status = std::exchange(status_, absl::OkStatus());
  if (!status.ok()) return status;
  return recording;
}

}  // namespace apb::kernels::cuda
