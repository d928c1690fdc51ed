// The operations of a device, as values: what they are given, whether that fits (Check), and which
// memory they read and write (VisitOperands). Shapes: T rows, D hidden size, F MLP size, V
// vocabulary, n_q / n_kv heads, d head dimension. Activations are bf16, f16 or f32 (the model's
// type; the CPU backend refuses f16 in all operations but Copy); weights have the same type or, on
// the CPU, a block type; accumulation is float.
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

// Each operation has: kName; main(), the operand whose type it computes in; Check(): OK, or
// kInternal with the name and two shapes (callers have checked what comes from outside);
// VisitOperands().

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
  // Checkpoint layout: row-major [out, in], need not be aligned to more than its type. Of the type
  // of x, or of a block type (kernels/weight_blocks.h; in is a multiple of kBlockLength) where x is
  // bf16 or f32 and the backend is the CPU's.
  TensorView weight;
  TensorView bias;  // may be absent
  TensorView out;   // f32, or the type of x; rows may be strided
  bool accumulate = false;

  static constexpr const char* kName = "Linear";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// out = silu(gate) * up, all [T, F]; an absent `up` gives silu(gate). gate and up have one type:
// out's or f32. out may be gate.
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

// Accumulate {x, residual}, then RmsNorm {residual, weight, epsilon, out}, in one pass. residual,
// out [T, D] of one type, not the same memory.
struct AccumulateRmsNormArgs {
  TensorView x, residual, weight;
  float epsilon = 0;
  TensorView out;

  static constexpr const char* kName = "AccumulateRmsNorm";
  const TensorView& main() const { return out; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Where K and V rows go: to cache slot slots[t] = block * block_size + offset; -1 = skip the row.
struct CacheRows {
  TensorView slots;    // [T] i64
  TensorView k_cache;  // [blocks, n_kv, block_size, d]
  TensorView v_cache;  // of the same shape and strides
};

// Rotary embedding, in place, "rotate half" pairing: (x[i], x[i + d/2]). Angle = position *
// inv_freq[i]; cos and sin are multiplied by attention_factor (yarn), computed in float. K and V
// can be stored in the cache in the same pass; without frequencies that is all that is done.
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

  static constexpr const char* kName = "Rope";
  const TensorView& main() const { return x; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// The way back from the cache: k[t], v[t] = what lies in slot slots[t] (>= 0, all of them). The
// rest as in CacheRows.
struct ReadFromCacheArgs {
  TensorView slots, k_cache, v_cache;
  TensorView k, v;  // [T, n_kv, d], rows may be strided

  static constexpr const char* kName = "ReadFromCache";
  const TensorView& main() const { return k; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Exact merge of partial results over disjoint keys (max-shifted, float32, host order); out and lse
// may be in a part's place. Rows that saw no key anywhere: out 0, lse -inf.
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

// Scores of keys by the attention mass that query rows give them (the training-free compressor):
// scores[t, j] = mean over query rows and over the g query heads of KV head j of q . k[t, j] *
// scale.
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

// Max over a window of `window` (odd) rows around each row, -inf outside. scores, out [T, n_kv]
// f32, not the same memory.
struct MaxPoolRowsArgs {
  TensorView scores;
  int window = 1;
  TensorView out;

  static constexpr const char* kName = "MaxPoolRows";
  const TensorView& main() const { return scores; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
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

// The error of a check that did not hold, naming two operands.
absl::Status ShapeError(const char* operation, const TensorView& a, const TensorView& b);

}  // namespace apb::kernels
