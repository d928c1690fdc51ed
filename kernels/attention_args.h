// Arguments of the two attention operations. They know no strategy: keys come in segments, rows
// come in two groups, and each (segment, group) pair has one visibility. APB, Star, Ring and plain
// causal attention are all spelled with these words. Notation: T rows, n_q query heads, n_kv KV
// heads, d head dimension, g = n_q / n_kv (query head i reads KV head i / g).
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
  // [S] i32; read only where some visibility is kCausal, may be absent otherwise.
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
  float scale = 0;  // 1 / sqrt(d) as a rule
  TensorView out;   // [T, n_q, d], f32 or the type of q
  // [T, n_q] f32, natural log of the sum of exp of scaled scores; -inf where a row saw no key
  // (out is 0 there). May be absent.
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

// The keys of one sequence in a paged attention call. It and what it points to lie in memory of the
// backend's place: from step to step they change there, and a recorded step (Backend::Record) reads
// what is there when it is done.
struct PagedSequence {
  // Block b of the sequence (b-th group of block_size slots) is block block_table[b] of the cache.
  const int32_t* block_table = nullptr;
  // Position of the token in each slot from causal_begin on, [slot_count - causal_begin]; need not
  // ascend.
  const int32_t* slot_positions = nullptr;
  int64_t slot_count = 0;  // slots in use on this rank; 0 is allowed (lse = -inf, out = 0)
  // Slots before this index are visible to all rows; the rest by position (causal).
  int64_t causal_begin = 0;
};

// Decode attention over this rank's paged cache (also the query pass, with several rows a
// sequence).
struct PagedAttentionArgs {
  TensorView q;                              // [T, n_q, d], after RoPE
  TensorView q_positions;                    // [T] i32
  TensorView k_cache;                        // [blocks, n_kv, block_size, d] of one layer
  TensorView v_cache;                        // of the same shape and strides
  std::span<const PagedRows> rows;           // of each sequence; host memory
  const PagedSequence* sequences = nullptr;  // [rows.size()]
  // The slots of all sequences together are at most as many. Results do not depend on how many more
  // they may be; a device launches for the bound, as it does not read `sequences` before.
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
