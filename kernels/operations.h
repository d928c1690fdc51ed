// The operations of a device, as values: their operands, whether these fit (Check), and which
// memory they read and write (VisitOperands). Shapes: T rows, D hidden size, F MLP size, V
// vocabulary, n_q and n_kv heads, d head dimension. Activations have the model's type: bf16, f16 or
// f32 (the CPU backend refuses f16 in all operations but Copy). Weights have the same type or, on
// the CPU, a block type. Sums are float.
//
// A new operation is a struct here and a name in Operation, its two functions in operations.cc, and
// a kernel in each backend: kernels/cpu (a function of operations_on_cpu.h, or a name in
// isa_kernels.h and a function in simd/) and kernels/cuda (a function of operations.h and its .cu
// file).
#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>

#include "absl/status/status.h"
#include "kernels/attention_args.h"
#include "kernels/operand_visitor.h"
#include "kernels/sample_args.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// Each operation has: kName; main(), the operand whose type it computes in; VisitOperands(); and
// Check(), which returns OK, or kInternal with the name and two shapes (operands that do not fit
// are a bug: callers have checked all input from outside).

// Copies between any two places, in stream order. Views have the same shape and type; rows may be
// strided.
struct CopyArgs {
  TensorView source, target;

  static constexpr const char* kName = "Copy";
  const TensorView& main() const { return source; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out[t] = table[ids[t]]. table [V, D], ids [T] i32 (0 <= id < V), out [T, D].
struct EmbeddingArgs {
  TensorView table, ids, out;

  static constexpr const char* kName = "Embedding";
  const TensorView& main() const { return table; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out = x / rms(x) * weight over the last dimension. x, out [T, D] or [T, heads, d]; weight [D] or
// [d]. out may be x.
struct RmsNormArgs {
  TensorView x, weight;
  float epsilon = 0;
  TensorView out;

  static constexpr const char* kName = "RmsNorm";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out[T, out] = x[T, in] * weight[out, in]^T (+ bias[out]) (+ out if accumulate).
struct LinearArgs {
  TensorView x;
  // Row-major [out, in], as in checkpoints, aligned to its element type only. It has the type of x,
  // or, on the CPU backend with x in bf16 or f32, a block type (kernels/weight_blocks.h; in is a
  // multiple of kBlockLength).
  TensorView weight;
  TensorView bias;  // may be absent
  TensorView out;   // f32, or the type of x; rows may be strided
  bool accumulate = false;

  static constexpr const char* kName = "Linear";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out = silu(gate) * up, all [T, F]; silu(gate) without `up`. gate and up have the same type: out's
// or f32. out may be gate.
struct SiluMulArgs {
  TensorView gate, up, out;

  static constexpr const char* kName = "SiluMul";
  const TensorView& main() const { return out; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out += x. Both [T, D]; x f32 (a sum over ranks), out of any float type.
struct AccumulateArgs {
  TensorView x, out;

  static constexpr const char* kName = "Accumulate";
  const TensorView& main() const { return out; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Accumulate {x, residual}, then RmsNorm {residual, weight, epsilon, out}, in one pass. residual
// and out are [T, D], of the same type, in different memory.
struct AccumulateRmsNormArgs {
  TensorView x, residual, weight;
  float epsilon = 0;
  TensorView out;

  static constexpr const char* kName = "AccumulateRmsNorm";
  const TensorView& main() const { return out; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// The places of rows of K and V in the paged cache. Row t goes to slot slots[t], which is
// block * block_size + offset; -1 skips the row.
struct CacheRows {
  TensorView slots;    // [T] i64
  TensorView k_cache;  // [blocks, n_kv, block_size, d]
  TensorView v_cache;  // the same shape and strides
};

// Rotary embedding in place, with "rotate half" pairs (x[i], x[i + rotary_dim / 2]). The angle is
// position * inv_freq[i]; cos and sin are multiplied by attention_factor (yarn) and computed in
// float. The same pass can store K and V in the cache; without frequencies it only stores them.
struct RopeArgs {
  TensorView x;          // [T, heads, d]
  TensorView positions;  // [T] i32; may be absent without frequencies
  TensorView inv_freq;   // [rotary_dim / 2] f32; dimensions past rotary_dim stay as they are
  float attention_factor = 1.0f;
  // If store.slots is present, K (the last n_kv heads of x) and V of the rows from store_begin on
  // are stored; store.slots has one slot for each of these rows.
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

  static constexpr const char* kName = "Rope";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Reads from the cache: k[t] and v[t] are the contents of slot slots[t] >= 0. Shapes and types as
// in CacheRows.
struct ReadFromCacheArgs {
  TensorView slots, k_cache, v_cache;
  TensorView k, v;  // [T, n_kv, d], rows may be strided

  static constexpr const char* kName = "ReadFromCache";
  const TensorView& main() const { return k; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Exact combine of partial results over disjoint keys (relative to the maximum, in f32, in the
// order of the parts). out and lse may lie where one part does. A row that saw no key in any part
// gets out 0 and lse -inf.
struct MergePartialsArgs {
  TensorView outs;  // [H, T, n_q, d] f32 (strided)
  TensorView lses;  // [H, T, n_q] f32 (strided)
  TensorView out;   // [T, n_q, d]
  TensorView lse;   // [T, n_q] f32, or absent

  static constexpr const char* kName = "MergePartials";
  const TensorView& main() const { return out; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// The score of a key for the training-free compressor: how well the query rows match it.
// scores[t, j] is the mean of q . k[t, j] * scale over the query rows and the g query heads of KV
// head j.
struct KeyScoreArgs {
  TensorView k;      // [T, n_kv, d], after RoPE
  TensorView query;  // [m, n_q, d], after RoPE
  float scale = 0;
  TensorView scores;  // [T, n_kv] f32

  static constexpr const char* kName = "KeyScores";
  const TensorView& main() const { return k; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// The maximum of the `window` (odd) rows around each row, fewer at the ends; NaN is ignored. scores
// and out are [T, n_kv] f32, in different memory.
struct MaxPoolRowsArgs {
  TensorView scores;
  int window = 1;
  TensorView out;

  static constexpr const char* kName = "MaxPoolRows";
  const TensorView& main() const { return scores; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// For each KV head, the `count` rows with the highest scores among rows [eligible_begin,
// eligible_end). Of equal scores the lower row comes first, so that every rank chooses the same;
// NaN counts as -inf. indices[j] holds head j's rows in ascending order.
struct TopKPerHeadArgs {
  TensorView scores;  // [T, n_kv] f32
  int64_t eligible_begin = 0;
  int64_t eligible_end = 0;  // eligible_end - eligible_begin >= count
  int64_t count = 0;
  TensorView indices;  // [n_kv, count] i32

  static constexpr const char* kName = "TopKPerHead";
  const TensorView& main() const { return scores; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out[i, j, :] = x[indices[j, i], j, :]. x [T, n_kv, d], indices [n_kv, count] i32, out [count,
// n_kv, d].
struct GatherRowsPerHeadArgs {
  TensorView x, indices, out;

  static constexpr const char* kName = "GatherRowsPerHead";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

using Operation =
    std::variant<const CopyArgs*, const EmbeddingArgs*, const RmsNormArgs*, const LinearArgs*,
                 const RopeArgs*, const SiluMulArgs*, const AccumulateArgs*,
                 const AccumulateRmsNormArgs*, const AttentionArgs*, const PagedAttentionArgs*,
                 const MergePartialsArgs*, const ReadFromCacheArgs*, const MaxPoolRowsArgs*,
                 const KeyScoreArgs*, const TopKPerHeadArgs*, const GatherRowsPerHeadArgs*,
                 const SampleArgs*>;

// The error of operands that do not fit. Names the operation and the types and shapes of a and b.
absl::Status ShapeError(const char* operation, const TensorView& a, const TensorView& b);

}  // namespace apb::kernels
