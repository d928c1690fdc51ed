// Arguments of the two attention operations. They know no strategy: keys come in segments, rows
// come in two groups, and each (segment, group) pair has one visibility. These words express APB,
// Star, Ring and plain causal attention. Notation: T rows, n_q query heads, n_kv KV heads, d head
// dimension, g = n_q / n_kv (query head i reads KV head i / g).
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/operand_visitor.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

enum class Visibility : uint8_t {
  kNone,    // no row of the group sees the segment
  kAll,     // every row of the group sees every key of the segment
  kCausal,  // a row sees a key when the key's position <= the row's position
};

// Contiguous keys. A key row may hold a different token for each KV head (a passing block does).
struct KeySegment {
  TensorView k;  // [S, n_kv, d], after RoPE
  TensorView v;  // [S, n_kv, d]
  // [S] i32. Read only for kCausal; may be absent otherwise.
  TensorView positions;
  std::array<Visibility, 2> visible_to_group{Visibility::kCausal, Visibility::kCausal};
};

// Prefill attention: out = softmax(q k^T * scale, masked) v over all segments together.
struct AttentionArgs {
  TensorView q;            // [T, n_q, d], after RoPE
  TensorView q_positions;  // [T] i32
  // Rows [0, group_split) are group 0, rows [group_split, T) are group 1.
  int64_t group_split = 0;
  std::span<const KeySegment> keys;
  float scale = 0;  // usually 1 / sqrt(d)
  TensorView out;   // [T, n_q, d], f32 or the type of q
  // [T, n_q] f32: the natural log of the sum of exp(scaled score). -inf for a row that saw no key,
  // whose out is 0. May be absent.
  TensorView lse;

  static constexpr const char* kName = "Attention";
  const TensorView& main() const { return q; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

// Rows [begin, begin + count) of q, which belong to one sequence.
struct PagedRows {
  int64_t begin = 0;
  int64_t count = 0;
};

// The keys of one sequence in a paged attention call. The struct and the arrays that it points to
// lie in memory of the backend's place. They change there from step to step, and a recorded step
// (Backend::Record) reads their values at the time of its launch.
struct PagedSequence {
  // The sequence's KV block b (its b-th block_size slots) is block block_table[b] of the cache.
  const int32_t* block_table = nullptr;
  // [slot_count - causal_begin]: the token positions of the slots from causal_begin on, in any
  // order.
  const int32_t* slot_positions = nullptr;
  int64_t slot_count = 0;  // slots in use on this rank; 0 is allowed (lse = -inf, out = 0)
  // Every row sees the slots before this index. It sees a later slot if the slot's position is at
  // most its own.
  int64_t causal_begin = 0;
};

// Attention over this rank's paged cache: decode, with one row for each sequence, and the query
// pass, with several.
struct PagedAttentionArgs {
  TensorView q;                              // [T, n_q, d], after RoPE
  TensorView q_positions;                    // [T] i32
  TensorView k_cache;                        // [blocks, n_kv, block_size, d] of one layer
  TensorView v_cache;                        // of the same shape and strides
  std::span<const PagedRows> rows;           // of each sequence; CPU memory
  const PagedSequence* sequences = nullptr;  // [rows.size()]
  // An upper bound for the slots of all sequences together. A device is launched for this bound,
  // because the CPU does not read `sequences`; results do not depend on it.
  int64_t total_slots = 0;
  float scale = 0;
  TensorView out;  // [T, n_q, d], f32 or the type of q
  TensorView lse;  // [T, n_q] f32, as above; may be absent

  static constexpr const char* kName = "PagedAttention";
  const TensorView& main() const { return q; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};

}  // namespace apb::kernels
