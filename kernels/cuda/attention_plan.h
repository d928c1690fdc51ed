// Which tiles of rows meet which tiles of keys: shared by the host, the kernels and the tests that
// need no device. Row tiles never cross the border of the two groups, so a tile has one visibility
// for each segment. Of a segment a row tile visits the first `seen` key tiles, and the first
// `whole` of those without a mask. With keys in the order of their positions nothing is visited in
// vain; with keys in any order the result is the same.
#pragma once

#include <cstdint>

#include "kernels/attention_args.h"

#ifdef __CUDACC__
#define APB_HOST_DEVICE __host__ __device__
#else
#define APB_HOST_DEVICE
#endif

namespace apb::kernels::cuda {

struct RowTile {
  int64_t begin;
  int rows;
  int group;
};

APB_HOST_DEVICE inline int64_t TilesOf(int64_t count, int tile) {
  return (count + tile - 1) / tile;
}

APB_HOST_DEVICE inline int64_t RowTiles(int64_t rows, int64_t group_split, int tile_rows) {
  return TilesOf(group_split, tile_rows) + TilesOf(rows - group_split, tile_rows);
}

APB_HOST_DEVICE inline RowTile RowTileAt(int64_t index, int64_t rows, int64_t group_split,
                                         int tile_rows) {
  const int64_t of_first_group = TilesOf(group_split, tile_rows);
  const bool first = index < of_first_group;
  const int64_t begin =
      first ? index * tile_rows : group_split + (index - of_first_group) * tile_rows;
  const int64_t left = (first ? group_split : rows) - begin;
  return {begin, static_cast<int>(left < tile_rows ? left : tile_rows), first ? 0 : 1};
}

// Lowest and highest position of the keys of a tile, or of the rows of one.
struct PositionRange {
  int32_t low, high;
};

// Key tiles of one segment for one row tile: [0, seen) are visited, [0, whole) without a mask.
struct TileCount {
  int32_t whole, seen;
};

// The part of a TileCount that the key tiles first, first + step, ... decide; the parts are joined
// by the lowest `whole` and the highest `seen`. `ranges` is read for kCausal only.
APB_HOST_DEVICE inline TileCount CountTiles(Visibility visibility, int keys, int tile_keys,
                                            const PositionRange* ranges, PositionRange rows,
                                            int first, int step) {
  const int tiles = static_cast<int>(TilesOf(keys, tile_keys));
  if (visibility == Visibility::kNone) return {0, 0};
  TileCount count{keys / tile_keys, visibility == Visibility::kAll ? tiles : 0};
  if (visibility == Visibility::kAll) return count;
  for (int tile = first; tile < tiles; tile += step) {
    if (ranges[tile].high > rows.low && tile < count.whole) count.whole = tile;
    if (ranges[tile].low <= rows.high) count.seen = tile + 1;
  }
  return count;
}

// Walks over the key tiles of a row tile, segment by segment. Next() goes to the first one too.
struct TileWalk {
  const TileCount* counts;  // [segments]
  int segments;
  int segment = 0;
  int tile = -1;

  APB_HOST_DEVICE bool Next() {
    ++tile;
    while (segment < segments && tile >= counts[segment].seen) {
      ++segment;
      tile = 0;
    }
    return segment < segments;
  }
  APB_HOST_DEVICE bool masked() const { return tile >= counts[segment].whole; }
};

// How the rows of one sequence meet its slots in paged attention. A packed row is a (row, query
// head of the KV head's group) pair. Depends on the sequence alone, so that a row's result does not
// depend on what else is in the batch. A unit is a (row tile, split) pair.
struct PagedSplit {
  int row_tiles = 0;
  int splits = 1;          // parts that the slots are cut into
  int keys_per_split = 0;  // a multiple of kPagedTileKeys, but in the last part
};

constexpr int kPagedTileKeys = 64;
constexpr int kMinKeysPerSplit = 512;
// Packed rows up to which the warps of a block share the rows and take different keys.
constexpr int kFewRows = 16;
constexpr int kManyRows = 64;  // packed rows of a tile otherwise

APB_HOST_DEVICE inline int PagedRowTiles(int row_count, int group) {
  const int packed = row_count * group, tile = packed <= kFewRows ? kFewRows : kManyRows;
  return (packed + tile - 1) / tile;
}

// Splits that a sequence has at most. `parallel_blocks`: blocks that keep the device busy.
APB_HOST_DEVICE inline int MostSplits(int row_tiles, int kv_heads, int parallel_blocks) {
  const int splits = parallel_blocks / (row_tiles * kv_heads);
  return splits < 1 ? 1 : splits;
}

// In 32 bits, as every block of a launch computes it; row_count > 0.
APB_HOST_DEVICE inline PagedSplit SplitSequence(int row_count, int slots, int group, int kv_heads,
                                                int parallel_blocks) {
  PagedSplit split;
  split.row_tiles = PagedRowTiles(row_count, group);
  const int most = MostSplits(split.row_tiles, kv_heads, parallel_blocks);
  const int share = (slots + most - 1) / most;
  const int keys = share < kMinKeysPerSplit ? kMinKeysPerSplit : share;
  split.keys_per_split = (keys + kPagedTileKeys - 1) / kPagedTileKeys * kPagedTileKeys;
  if (slots > 0) split.splits = (slots + split.keys_per_split - 1) / split.keys_per_split;
  return split;
}

// Bounds the units of a launch, whose sequences' slots the host does not know.
struct PagedUnitBound {
  int64_t total_slots;  // of all sequences, at most
  int group, kv_heads, parallel_blocks;
  int64_t row_tiles = 0, alone = 0, largest = 0;

  void Add(int row_count) {
    const int64_t tiles = PagedRowTiles(row_count, group);
    const int64_t most = MostSplits(static_cast<int>(tiles), kv_heads, parallel_blocks);
    const int64_t of_slots = TilesOf(total_slots, kMinKeysPerSplit);
    row_tiles += tiles;
    alone += tiles * (of_slots < 1 ? 1 : of_slots < most ? of_slots : most);
    largest = tiles > largest ? tiles : largest;
  }
  // Each sequence for itself has no more than `alone` says; and a split behind the first of a
  // sequence stands for kMinKeysPerSplit slots.
  int64_t units() const {
    const int64_t together = row_tiles + largest * (total_slots / kMinKeysPerSplit);
    return alone < together ? alone : together;
  }
  bool any_split() const { return units() > row_tiles; }
};

}  // namespace apb::kernels::cuda
