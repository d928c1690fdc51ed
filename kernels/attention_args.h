// Arguments of the two attention operations. They know no strategy: keys come in segments, rows
// come in two groups, and each (segment, group) pair has one visibility. APB, Star, Ring and plain
// causal attention are all spelled with these words. Notation: T rows, n_q query heads, n_kv KV
// heads, d head dimension, g = n_q / n_kv (query head i reads KV head i / g).
#pragma once

#include <array>
#include <cstdint>
#include <span>

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
};

// The rows of one sequence in a paged attention call.
struct PagedSequence {
  int64_t row_begin = 0;  // rows [row_begin, row_begin + row_count) of q
  int64_t row_count = 0;
  // Block b of the sequence (b-th group of block_size slots) is block block_table[b] of the cache.
  // Memory of the backend's place.
  const int32_t* block_table = nullptr;
  int64_t slot_count = 0;  // slots in use on this rank; 0 is allowed (lse = -inf, out = 0)
  // Slots before this index are visible to all rows; the rest by position (causal).
  int64_t causal_begin = 0;
  // Position of the token in each slot from causal_begin on, [slot_count - causal_begin]; need not
  // ascend. Memory of the backend's place.
  const int32_t* slot_positions = nullptr;
};

// Decode attention over this rank's paged cache (also the query pass, with several rows a
// sequence).
struct PagedAttentionArgs {
  TensorView q;            // [T, n_q, d], after RoPE
  TensorView q_positions;  // [T] i32
  TensorView k_cache;      // [blocks, n_kv, block_size, d] of one layer
  TensorView v_cache;      // [blocks, n_kv, block_size, d]
  std::span<const PagedSequence> sequences;
  float scale = 0;
  TensorView out;  // [T, n_q, d], f32 or the type of q
  TensorView lse;  // [T, n_q] f32, as above; may be absent
};

}  // namespace apb::kernels
