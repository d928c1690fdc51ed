// The narrow device interface. Everything above it is the same for CPU and GPU. Operations take
// plain views and a stream; they return nothing: a failed kernel makes its stream fail for good,
// and Synchronize tells. Activations are bf16, f16 or f32 (the model's type; the CPU backend refuses
// f16 in all operations but Copy); weights have the same type or, on the CPU, a block
// type; accumulation is float. Shapes: T rows, D hidden size, F MLP size, V vocabulary, n_q / n_kv
// heads, d head dimension.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention_args.h"
#include "kernels/sample_args.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// An in-order queue of work. The first failure sticks: every later Synchronize returns it.
class Stream {
 public:
  virtual ~Stream() = default;
  // Waits until all work given so far is done.
  virtual absl::Status Synchronize() = 0;
  // The moment when the work given so far is done, for AddSeconds. Here for streams whose work is
  // done when it is given.
  virtual int64_t Mark() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  // Adds the seconds between two marks to *total, at the latest in the next Synchronize, which
  // forgets all marks. `total` must live until then.
  virtual void AddSeconds(int64_t begin, int64_t end, double* total) {
    *total +=
        std::chrono::duration<double>(std::chrono::steady_clock::duration(end - begin)).count();
  }
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

// Recorded work of a stream (Backend::Record). It reads and writes the memory that was named while it
// was recorded, so that must be there, with what is to be worked on; what the host passed by value is
// as it was. Must end before the backend, its stream, and communicators that took part.
class Graph {
 public:
  virtual ~Graph() = default;
  // Gives the work to the stream that it was recorded from.
  virtual void Launch(Stream& stream) = 0;
};

// out[T, out] = x[T, in] * weight[out, in]^T (+ bias[out]) (+ out if accumulate).
struct LinearArgs {
  TensorView x;
  // Checkpoint layout: row-major [out, in], need not be aligned to more than its type. Of the type of x, or
  // of a block type (kernels/weight_blocks.h; in is a multiple of kBlockLength) where x is bf16 or f32 and
  // the backend is the CPU's.
  TensorView weight;
  TensorView bias;  // may be absent
  TensorView out;   // f32, or the type of x; rows may be strided
  bool accumulate = false;
};

// Where K and V rows go: to cache slot slots[t] = block * block_size + offset; -1 = skip the row.
struct CacheRows {
  TensorView slots;    // [T] i64
  TensorView k_cache;  // [blocks, n_kv, block_size, d]
  TensorView v_cache;  // of the same shape and strides
};

// Rotary embedding, in place, "rotate half" pairing: (x[i], x[i + d/2]). Angle = position *
// inv_freq[i]; cos and sin are multiplied by attention_factor (yarn), computed in float. K and V can
// be stored in the cache in the same pass; without frequencies that is all that is done.
struct RopeArgs {
  TensorView x;          // [T, heads, d]
  TensorView positions;  // [T] i32; may be absent without frequencies
  TensorView inv_freq;   // [rotary_dim / 2] f32; dimensions past rotary_dim are left alone
  float attention_factor = 1.0f;
  // Stored if store.slots is present: K, which is the last n_kv heads of x, and V, of the rows from
  // store_begin on; the slots are theirs.
  CacheRows store;
  TensorView v;  // [T, n_kv, d]
  int64_t store_begin = 0;

  TensorView keys() const {
    TensorView keys = x;
    keys.data = static_cast<std::byte*>(x.data) +
                (x.shape[1] - v.shape[1]) * x.stride[1] * static_cast<int64_t>(SizeOf(x.dtype));
    keys.shape[1] = v.shape[1];
    return keys;
  }
};

// Scores of keys by the attention mass that query rows give them (the training-free compressor):
// scores[t, j] = mean over query rows and over the g query heads of KV head j of q . k[t, j] *
// scale.
struct KeyScoreArgs {
  TensorView k;      // [T, n_kv, d], after RoPE
  TensorView query;  // [m, n_q, d], after RoPE
  float scale = 0;
  TensorView scores;  // [T, n_kv] f32
};

// For each KV head the `count` rows with the highest score among rows [eligible_begin,
// eligible_end), equal scores: the lower row first (deterministic on every rank). indices[j, i] is
// the i-th row of head j, ordered by row.
struct TopKPerHeadArgs {
  TensorView scores;  // [T, n_kv] f32
  int64_t eligible_begin = 0;
  int64_t eligible_end = 0;  // eligible_end - eligible_begin >= count
  int64_t count = 0;
  TensorView indices;  // [n_kv, count] i32
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
  // Copies between any two places, in stream order. Views have the same shape and type; rows may be
  // strided.
  virtual void Copy(const TensorView& source, const TensorView& target, Stream& stream) = 0;

  // out[t] = table[ids[t]]. table [V, D], ids [T] i32 (0 <= id < V), out [T, D].
  virtual void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                         Stream& stream) = 0;
  // out = x / rms(x) * weight over the last dimension. x, out [T, D] or [T, heads, d]; weight [D]
  // or [d]. out may be x.
  virtual void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon,
                       const TensorView& out, Stream& stream) = 0;
  virtual void Linear(const LinearArgs& args, Stream& stream) = 0;
  virtual void Rope(const RopeArgs& args, Stream& stream) = 0;
  // out = silu(gate) * up, all [T, F]; an absent `up` gives silu(gate). gate and up have one type:
  // out's or f32. out may be gate.
  virtual void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
                       Stream& stream) = 0;

  // out += x. Both [T, D]; x f32 (a sum over ranks), out of any float type.
  virtual void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) = 0;
  // Accumulate(x, residual), then RmsNorm(residual, weight, epsilon, out), in one pass. residual, out
  // [T, D] of one type, not the same memory.
  virtual void AccumulateRmsNorm(const TensorView& x, const TensorView& residual,
                                 const TensorView& weight, float epsilon, const TensorView& out,
                                 Stream& stream) = 0;

  virtual void Attention(const AttentionArgs& args, Stream& stream) = 0;
  virtual void PagedAttention(const PagedAttentionArgs& args, Stream& stream) = 0;
  // Exact merge of partial results over disjoint keys (max-shifted, float32, host order). outs [H, T,
  // n_q, d] f32 (strided), lses [H, T, n_q] f32 (strided), out [T, n_q, d], lse [T, n_q] f32 or
  // absent; both may be in a part's place. Rows that saw no key anywhere: out 0, lse -inf.
  virtual void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                             const TensorView& lse, Stream& stream) = 0;
  // The way back from the cache: k[t], v[t] = what lies in slot slots[t] (>= 0, all of them). k, v
  // [T, n_kv, d], rows may be strided; the rest as in CacheRows.
  virtual void ReadFromCache(const TensorView& slots, const TensorView& k_cache,
                             const TensorView& v_cache, const TensorView& k, const TensorView& v,
                             Stream& stream) = 0;

  // Max over a window of `window` (odd) rows around each row, -inf outside. scores, out [T, n_kv]
  // f32, not the same memory.
  virtual void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                           Stream& stream) = 0;
  virtual void KeyScores(const KeyScoreArgs& args, Stream& stream) = 0;
  virtual void TopKPerHead(const TopKPerHeadArgs& args, Stream& stream) = 0;
  // out[i, j, :] = x[indices[j, i], j, :]. x [T, n_kv, d], indices [n_kv, count] i32, out [count,
  // n_kv, d].
  virtual void GatherRowsPerHead(const TensorView& x, const TensorView& indices,
                                 const TensorView& out, Stream& stream) = 0;

  // Draws a token for each row of logits.
  virtual void Sample(const SampleArgs& args, Stream& stream) = 0;

  // Records what `work` gives to the stream instead of doing it: to launch many small operations
  // costs a device's host more than the device needs to do them. `work` must have been done before,
  // with operands of the same places and shapes (what is chosen and allocated the first time cannot be
  // recorded), must not synchronize, and must not touch host memory. An error of `work`, or of the
  // device, leaves the stream as it was. kUnimplemented where there is nothing to gain.
  virtual absl::StatusOr<std::unique_ptr<Graph>> Record(Stream& stream,
                                                        absl::FunctionRef<absl::Status()> work) = 0;
};

struct CpuBackendOptions {
  int threads = 0;  // OpenMP threads of the calling (step) thread; 0 = OMP_NUM_THREADS or all cores
  // amxbf16, avx512bf16, avx512vnni, avx512, avx2 or portable; "": what the environment's APB_CPU_ISA names, or
  // the best that this CPU has.
  std::string_view force_isa;
};

// The CPU backend. Work is done at once, on the calling thread and its OpenMP team.
// kInvalidArgument, with what there is, when a path is named that this machine lacks.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace apb::kernels
