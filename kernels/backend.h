// The narrow device interface: memory, streams, recorded steps, and operations (operations.h). The
// code above it is the same for CPU and GPU. Operations take plain views and a stream and return
// nothing: a failed kernel makes its stream fail for good, and Synchronize returns the error.
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
  // Waits for all work enqueued so far.
  virtual absl::Status Synchronize() = 0;
  // Makes the stream fail with this status, unless it is OK or the stream has failed before.
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  bool failed() const { return !status_.ok(); }
  // Marks the moment when the work enqueued so far is done, for AddSeconds. This version is for
  // streams that work at once, such as the CPU's.
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

// Recorded work of a stream (Backend::Record). A launch reads and writes the memory whose addresses
// the work had when it was recorded: that memory must still exist, and holds the launch's operands.
// Values passed by value stay those of the recording. The backend, the stream, and the
// communicators that took part must outlive the graph.
class Graph {
 public:
  virtual ~Graph() = default;
  // Enqueues the work. `stream`: the one that it was recorded from.
  virtual void Launch(Stream& stream) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  virtual Place place() const = 0;
  // Memory for activations and caches, aligned to at least 64 bytes, contents undefined.
  // kResourceExhausted when there is not enough.
  virtual absl::StatusOr<Buffer> Allocate(size_t size_bytes) = 0;
  // CPU memory for copies that run while the CPU goes on (page-locked where there is a device). It
  // must live until the stream has been synchronized. Aligned like Allocate's.
  virtual absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<Stream>> NewStream() = 0;
  // Enqueues an operation. Operands that do not fit make the stream fail; on a failed stream it
  // does nothing.
  template <typename Args>
  void Run(const Args& args, Stream& stream) {
    stream.Fail(args.Check());
    if (!stream.failed()) Do(&args, stream);
  }

  // Short forms for operations with many callers.
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

  // Records the work that `work` enqueues, instead of doing it: the CPU needs longer to launch many
  // small operations than the device needs to run them. `work` must have run before with operands
  // of the same addresses and shapes (the kernel choices and allocations of a first run cannot be
  // recorded). It must neither synchronize nor touch CPU memory. An error of `work` or of the
  // device leaves the stream as it was. kUnimplemented from backends that would gain nothing.
  virtual absl::StatusOr<std::unique_ptr<Graph>> Record(Stream& stream,
                                                        absl::FunctionRef<absl::Status()> work) = 0;

 protected:
  // Does the work. Run() has checked the operands and that the stream has not failed.
  virtual void Do(Operation operation, Stream& stream) = 0;
};

struct CpuBackendOptions {
  int threads = 0;  // OpenMP threads of the calling (step) thread; 0 = OMP_NUM_THREADS or all cores
  // amxbf16, avx512bf16, avx512vnni, avx512, avx2 or portable. "" takes the environment's
  // APB_CPU_ISA, or else the best instruction set of this CPU.
  std::string_view force_isa;
};

// The CPU backend. It does all work at once, on the calling thread and its OpenMP team.
// kInvalidArgument if force_isa names an instruction set that this machine lacks; the message lists
// the ones it has.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace apb::kernels
