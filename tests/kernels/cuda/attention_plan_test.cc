// Goal: the plans of the CUDA prefill kernels and of strided copies are right, without a device.
// Method: random shapes; row tiles, visited key tiles and pieces of copies are compared with plain
// loops over rows, keys and elements.
#include "kernels/cuda/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/strided_copy.h"

namespace apb::kernels::cuda {
namespace {

TEST(RowTiles, CoverEachRowOnceInItsGroup) {
  std::mt19937 rng(1);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t rows = rng() % 500, split = rng() % (rows + 1);
    const int tile_rows = trial % 2 ? 64 : 128;
    std::vector<int> group(rows, -1);
    for (int64_t i = 0; i < RowTiles(rows, split, tile_rows); ++i) {
      const RowTile tile = RowTileAt(i, rows, split, tile_rows);
      ASSERT_GT(tile.rows, 0);
      ASSERT_LE(tile.rows, tile_rows);
      for (int64_t r = tile.begin; r < tile.begin + tile.rows; ++r) {
        ASSERT_EQ(group.at(r), -1);
        group[r] = tile.group;
      }
    }
    for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(group[r], r < split ? 0 : 1);
  }
}

// Counts a segment's tiles as the planning kernels do: from position ranges, by 32 lanes.
TileCount Count(Visibility visibility, const std::vector<int32_t>& keys, int tile_keys,
                PositionRange rows) {
  std::vector<PositionRange> ranges;
  for (size_t begin = 0; begin < keys.size(); begin += tile_keys) {
    const auto first = keys.begin() + begin;
    const auto last = keys.begin() + std::min(keys.size(), begin + tile_keys);
    ranges.push_back({*std::min_element(first, last), *std::max_element(first, last)});
  }
  TileCount joined{INT32_MAX, 0};
  for (int lane = 0; lane < 32; ++lane) {
    const TileCount part = CountTiles(visibility, static_cast<int>(keys.size()), tile_keys,
                                      ranges.data(), rows, lane, 32);
    joined.whole = std::min(joined.whole, part.whole);
    joined.seen = std::max(joined.seen, part.seen);
  }
  return joined;
}

TEST(KeyTiles, MissNoKeyAndMaskWhereNeeded) {
  std::mt19937 rng(2);
  for (int trial = 0; trial < 300; ++trial) {
    const int tile_keys = trial % 2 ? 64 : 128;
    const Visibility visibility = static_cast<Visibility>(rng() % 3);
    std::vector<int32_t> keys(rng() % 5000), rows(1 + rng() % 128);
    const bool in_order = rng() % 2 == 0;
    std::iota(keys.begin(), keys.end(), static_cast<int32_t>(rng() % 1000));
    if (!in_order) std::shuffle(keys.begin(), keys.end(), rng);
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(rng() % 7000));
    const PositionRange range{rows.front(), rows.back()};
    const TileCount count = Count(visibility, keys, tile_keys, range);
    std::vector<bool> visited(keys.size()), masked(keys.size());
    TileWalk walk{&count, 1};
    while (walk.Next()) {
      for (size_t k = walk.tile * tile_keys; k < size_t(walk.tile + 1) * tile_keys; ++k) {
        if (k >= keys.size()) {
          ASSERT_TRUE(walk.masked());  // keys that do not exist
          continue;
        }
        visited[k] = true;
        masked[k] = walk.masked();
      }
    }
    size_t in_vain = 0;
    for (size_t k = 0; k < keys.size(); ++k) {
      const auto sees = [&](int32_t row) {
        return visibility == Visibility::kAll ||
               (visibility == Visibility::kCausal && keys[k] <= row);
      };
      const bool any = std::any_of(rows.begin(), rows.end(), sees);
      const bool all = std::all_of(rows.begin(), rows.end(), sees);
      ASSERT_TRUE(!any || visited[k]);
      ASSERT_TRUE(!visited[k] || all || masked[k]);
      in_vain += visited[k] && !any;
    }
    if (in_order) {
      ASSERT_LT(in_vain, static_cast<size_t>(tile_keys));
    }
  }
}

TEST(TileWalk, GoesOverSegmentsInOrder) {
  const TileCount counts[] = {{0, 0}, {1, 2}, {0, 0}, {0, 1}, {0, 0}};
  TileWalk walk{counts, 5};
  std::vector<std::pair<int, int>> visited;
  while (walk.Next()) visited.emplace_back(walk.segment, walk.tile);
  EXPECT_EQ(visited, (std::vector<std::pair<int, int>>{{1, 0}, {1, 1}, {3, 0}}));
  TileWalk nothing{counts, 1};
  EXPECT_FALSE(nothing.Next());
}

TEST(CopyRuns, MoveEveryElementToItsPlace) {
  std::mt19937 rng(4);
  for (int trial = 0; trial < 300; ++trial) {
    const int rank = 1 + static_cast<int>(rng() % 4);
    TensorView source, target;
    source.rank = target.rank = rank;
    source.dtype = target.dtype = trial % 2 ? DType::kBF16 : DType::kI64;
    int64_t from = 1, to = 1;
    for (int i = rank - 1; i >= 0; --i) {
      source.shape[i] = target.shape[i] = trial == 0 && i == 0 ? 0 : 1 + rng() % 4;
      source.stride[i] = from;
      target.stride[i] = to;
      from = from * source.shape[i] + (rng() % 3 == 0 ? 3 : 0);
      to = to * source.shape[i] + (rng() % 3 == 0 ? 5 : 0);
    }
    const size_t size = SizeOf(source.dtype);
    std::vector<std::byte> in((from + 8) * size), out((to + 8) * size, std::byte{0}), want = out;
    for (std::byte& b : in) b = std::byte(1 + rng() % 255);
    source.data = in.data();
    target.data = out.data();
    for (int64_t i = 0; i < source.numel(); ++i) {
      int64_t rest = i, a = 0, b = 0;
      for (int d = rank - 1; d >= 0; --d) {
        a += rest % source.shape[d] * source.stride[d];
        b += rest % source.shape[d] * target.stride[d];
        rest /= source.shape[d];
      }
      std::memcpy(&want[b * size], &in[a * size], size);
    }
    for (const CopyRun& run : CopyRuns(source, target)) {
      ASSERT_LE(run.width, run.source_pitch);
      ASSERT_LE(run.width, run.target_pitch);
      for (size_t r = 0; r < run.rows; ++r)
        std::memcpy(run.target + r * run.target_pitch, run.source + r * run.source_pitch,
                    run.width);
    }
    ASSERT_EQ(out, want) << "trial " << trial;
  }
}

TEST(CopyRuns, DenseViewsAreOnePiece) {
  std::vector<float> in(60), out(60);
  const TensorView source = TensorView::Contiguous(in.data(), DType::kF32, {3, 4, 5});
  const TensorView target = TensorView::Contiguous(out.data(), DType::kF32, {3, 4, 5});
  ASSERT_EQ(CopyRuns(source, target).size(), 1u);
  EXPECT_EQ(CopyRuns(source, target)[0].rows, 1u);
  EXPECT_EQ(CopyRuns(source, target)[0].width, 240u);
}

}  // namespace
}  // namespace apb::kernels::cuda
