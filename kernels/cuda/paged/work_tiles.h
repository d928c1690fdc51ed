// The division of a paged attention call into work tiles; a thread block takes one work tile of one
// KV head. Shared by the CPU side, the kernels and the tests that need no device. A packed row is a
// (token, query head of the KV head's group) pair. A work tile is a tile of one sequence's packed
// rows with one split of its keys. Long sequences are split over the keys, so that a single one
// fills the device.
#pragma once

#include "kernels/cuda/attention_plan.h"

namespace apb::kernels::cuda::paged {

constexpr int kTileKeys = 64;  // splits begin on multiples of this
constexpr int kMinKeysPerSplit = 512;
// A sequence of at most kFewRows packed rows (decode) has one tile of them, whose keys the warps of
// a block divide. Other sequences have tiles of kManyRows packed rows, which the warps divide.
constexpr int kFewRows = 16;
constexpr int kManyRows = 64;

// The work tiles of one sequence: row_tiles * num_splits. They depend on the sequence alone, so
// that a row's result does not depend on the rest of the batch.
struct SequenceSplits {
  int row_tiles = 0;
  int num_splits = 1;
  int keys_per_split = 0;  // a multiple of kTileKeys; the last split may have fewer keys
};

// row_count: tokens of the sequence; group: query heads of a KV head.
APB_HOST_DEVICE inline int RowTilesOf(int row_count, int group) {
  const int packed = row_count * group, tile = packed <= kFewRows ? kFewRows : kManyRows;
  return (packed + tile - 1) / tile;
}

// The most splits that a sequence may have. parallel_blocks: blocks that keep the device busy.
APB_HOST_DEVICE inline int MaxSplits(int row_tiles, int kv_heads, int parallel_blocks) {
  const int splits = parallel_blocks / (row_tiles * kv_heads);
  return splits < 1 ? 1 : splits;
}

// row_count > 0. In 32 bits, because every block of a launch computes it.
APB_HOST_DEVICE inline SequenceSplits SplitSequence(int row_count, int slots, int group,
                                                    int kv_heads, int parallel_blocks) {
  SequenceSplits split;
  split.row_tiles = RowTilesOf(row_count, group);
  const int most = MaxSplits(split.row_tiles, kv_heads, parallel_blocks);
  const int share = (slots + most - 1) / most;
  const int keys = share < kMinKeysPerSplit ? kMinKeysPerSplit : share;
  split.keys_per_split = (keys + kTileKeys - 1) / kTileKeys * kTileKeys;
  if (slots > 0) split.num_splits = (slots + split.keys_per_split - 1) / split.keys_per_split;
  return split;
}

// An upper bound for the work tiles of a launch. The grid has this size, because only the device
// knows the slots of each sequence.
struct WorkTileBound {
  int64_t total_slots;  // of all sequences together, at most
  int group, kv_heads, parallel_blocks;
  int64_t row_tiles = 0, alone = 0, largest = 0;

  // Adds a sequence of row_count tokens.
  void Add(int row_count) {
    const int64_t tiles = RowTilesOf(row_count, group);
    const int64_t most = MaxSplits(static_cast<int>(tiles), kv_heads, parallel_blocks);
    const int64_t of_slots = TilesOf(total_slots, kMinKeysPerSplit);
    row_tiles += tiles;
    alone += tiles * (of_slots < 1 ? 1 : of_slots < most ? of_slots : most);
    largest = tiles > largest ? tiles : largest;
  }
  // The lower of two bounds: the sum of each sequence's own bound (`alone`), and one from the slots
  // of all sequences, because every split but a sequence's first stands for kMinKeysPerSplit slots.
  int64_t work_tiles() const {
    const int64_t together = row_tiles + largest * (total_slots / kMinKeysPerSplit);
    return alone < together ? alone : together;
  }
  bool any_split() const { return work_tiles() > row_tiles; }
};

}  // namespace apb::kernels::cuda::paged
