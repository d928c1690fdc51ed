// The narrow device interface: memory, streams, recorded steps, and operations (operations.h). All
// above it is the same for CPU and GPU. Operations take plain views and a stream; they return
// nothing: a failed kernel makes its stream fail for good, and Synchronize tells.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/operations.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// An in-order queue of work. The first failure sticks: every later Synchronize returns it.
class Stream {
 public:
  virtual ~Stream() = default;
  // Waits until all work given so far is done.
  virtual absl::Status Synchronize() = 0;
  // The stream has failed now, unless the status is OK or it had failed before.
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  bool failed() const { return !status_.ok(); }
  // The moment when the work given so far is done, for AddSeconds. Here for streams whose work is
  // done when it is given.
  virtual int64_t Mark() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  // Adds the seconds between two marks to *total, at the latest in the next Synchronize, which
  // forgets all marks. `total` must live until then.
  virtual void AddSeconds(int64_t begin, int64_t end, double* total) {
    *total +=
        std::chrono::duration<double>(std::chrono::steady_clock::duration(end - begin)).count();
  }

 protected:
  absl::Status status_;
};

// Owned memory of a backend; freed with the object. The backend must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t size_bytes, std::function<void(void*)> free)
      : data_(data), size_bytes_(size_bytes), free_(std::move(free)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(free_, other.free_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) free_(data_);
  }
  void* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
  std::function<void(void*)> free_;
};

// Recorded work of a stream (Backend::Record). It reads and writes the memory that was named while
// it was recorded, so that must be there, with what is to be worked on; what the host passed by
// value is as it was. Must end before the backend, its stream, and communicators that took part.
class Graph {
 public:
  virtual ~Graph() = default;
  // Gives the work to the stream that it was recorded from.
  virtual void Launch(Stream& stream) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  virtual Place place() const = 0;
  // Memory for activations and caches, aligned to at least 64 bytes, contents undefined.
  // kResourceExhausted when there is none.
  virtual absl::StatusOr<Buffer> Allocate(size_t size_bytes) = 0;
  // Host memory from and to which Copy works while the host goes on (page-locked where there is a
  // device): it must stay until the stream has been synchronized. Aligned like Allocate's.
  virtual absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<Stream>> NewStream() = 0;
  // Gives an operation to the stream; does nothing on a stream that has failed. Operands that do
  // not fit fail it.
  template <typename Args>
  void Run(const Args& args, Stream& stream) {
    stream.Fail(args.Check());
    if (!stream.failed()) Do(&args, stream);
  }

  // The same in short, of operations that are called all over.
  void Copy(const TensorView& source, const TensorView& target, Stream& stream) {
    Run(CopyArgs{source, target}, stream);
  }
  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) {
    Run(EmbeddingArgs{table, ids, out}, stream);
  }
  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) {
    Run(RmsNormArgs{x, weight, epsilon, out}, stream);
  }
  void Linear(const LinearArgs& args, Stream& stream) { Run(args, stream); }
  void Rope(const RopeArgs& args, Stream& stream) { Run(args, stream); }
  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) {
    Run(SiluMulArgs{gate, up, out}, stream);
  }
  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) {
    Run(AccumulateArgs{x, out}, stream);
  }
  void AccumulateRmsNorm(const TensorView& x, const TensorView& residual, const TensorView& weight,
                         float epsilon, const TensorView& out, Stream& stream) {
    Run(AccumulateRmsNormArgs{x, residual, weight, epsilon, out}, stream);
  }
  void Attention(const AttentionArgs& args, Stream& stream) { Run(args, stream); }
  void PagedAttention(const PagedAttentionArgs& args, Stream& stream) { Run(args, stream); }
  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) {
    Run(MergePartialsArgs{outs, lses, out, lse}, stream);
  }
  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) {
    Run(ReadFromCacheArgs{slots, k_cache, v_cache, k, v}, stream);
  }
  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out, Stream& stream) {
    Run(MaxPoolRowsArgs{scores, window, out}, stream);
  }
  void KeyScores(const KeyScoreArgs& args, Stream& stream) { Run(args, stream); }
  void TopKPerHead(const TopKPerHeadArgs& args, Stream& stream) { Run(args, stream); }
  void Sample(const SampleArgs& args, Stream& stream) { Run(args, stream); }

  // Records what `work` gives to the stream instead of doing it: to launch many small operations
  // costs a device's host more than the device needs to do them. `work` must have been done before,
  // with operands of the same places and shapes (what is chosen and allocated the first time cannot
  // be recorded), must not synchronize, and must not touch host memory. An error of `work`, or of
  // the device, leaves the stream as it was. kUnimplemented where there is nothing to gain.
  virtual absl::StatusOr<std::unique_ptr<Graph>> Record(Stream& stream,
                                                        absl::FunctionRef<absl::Status()> work) = 0;

 protected:
  // Operands fit, and the stream has not failed.
  virtual void Do(Operation operation, Stream& stream) = 0;
};

struct CpuBackendOptions {
  int threads = 0;  // OpenMP threads of the calling (step) thread; 0 = OMP_NUM_THREADS or all cores
  // amxbf16, avx512bf16, avx512vnni, avx512, avx2 or portable; "": what the environment's
  // APB_CPU_ISA names, or the best that this CPU has.
  std::string_view force_isa;
};

// The CPU backend. Work is done at once, on the calling thread and its OpenMP team.
// kInvalidArgument, with what there is, when a path is named that this machine lacks.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace apb::kernels
