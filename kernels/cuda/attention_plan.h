// The plan of prefill attention: which key tiles a row tile visits. Shared by the CPU side, the
// kernels and the tests that need no device. A row tile has rows of one group only, so that it has
// one visibility for each segment. It visits the first `seen` key tiles of a segment, the first
// `whole` of them without a mask. Results do not depend on the order of the keys; if their
// positions ascend, no tile is visited in vain.
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

// The lowest and highest position of the keys of a tile, or of the rows of one.
struct PositionRange {
  int32_t low, high;
};

// The key tiles of one segment for one row tile: [0, seen) are visited, [0, whole) without a mask.
struct TileCount {
  int32_t whole, seen;
};

// Counts over the key tiles first, first + step, ... The TileCount of all tiles has the lowest
// `whole` and the highest `seen` of all such parts. `ranges` (of the key tiles) is read for kCausal
// only.
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

// Walks over the key tiles of a row tile, segment by segment. The first Next() goes to the first
// tile.
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

}  // namespace apb::kernels::cuda
