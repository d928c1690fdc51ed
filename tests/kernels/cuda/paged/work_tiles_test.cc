// Goal: the work tiles of paged attention cover all rows and keys of a batch, and the upper bound
// of their number holds, without a device. Method: random shapes, compared with sums over the
// sequences.
#include "kernels/cuda/paged/work_tiles.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace apb::kernels::cuda::paged {
namespace {

TEST(SequenceSplits, CoversRowsAndSlots) {
  std::mt19937 rng(3);
  for (int trial = 0; trial < 300; ++trial) {
    const int rows = 1 + static_cast<int>(rng() % 300),
              slots = static_cast<int>(rng() % (trial % 2 ? 100000 : 3000));
    const int group = 1 + static_cast<int>(rng() % 16);
    const SequenceSplits split = SplitSequence(rows, slots, group, 1 + rng() % 8, 4 * 132);
    const int64_t tile = rows * group <= kFewRows ? kFewRows : kManyRows;
    EXPECT_GE(split.row_tiles * tile, rows * group);
    EXPECT_LT((split.row_tiles - 1) * tile, rows * group);
    EXPECT_EQ(split.keys_per_split % kTileKeys, 0);
    EXPECT_GE(int64_t{split.num_splits} * split.keys_per_split, slots);
    EXPECT_TRUE(split.num_splits == 1 ||
                int64_t{split.num_splits - 1} * split.keys_per_split < slots);
  }
  // A long sequence alone fills the device: 8 KV heads, one row, 64K keys.
  const SequenceSplits decode = SplitSequence(1, 65536, 4, 8, 4 * 132);
  EXPECT_GE(decode.num_splits * 8, 2 * 132);
}

TEST(WorkTileBound, IsNotExceededAndNotFarOff) {
  std::mt19937 rng(5);
  for (int trial = 0; trial < 300; ++trial) {
    const int count = 1 + static_cast<int>(rng() % 60), group = 1 + static_cast<int>(rng() % 8),
              kv_heads = 1 + static_cast<int>(rng() % 8);
    int64_t total = 0, work_tiles = 0;
    std::vector<int> rows(count), slots(count);
    for (int i = 0; i < count; ++i) {
      rows[i] = 1 + static_cast<int>(rng() % (trial % 2 ? 200 : 1));
      slots[i] = static_cast<int>(rng() % (rng() % 5 ? 3000 : 70000));
      total += slots[i];
    }
    WorkTileBound bound{
        .total_slots = total, .group = group, .kv_heads = kv_heads, .parallel_blocks = 4 * 132};
    bool any_split = false;
    for (int i = 0; i < count; ++i) {
      const SequenceSplits split = SplitSequence(rows[i], slots[i], group, kv_heads, 4 * 132);
      bound.Add(rows[i]);
      work_tiles += split.row_tiles * split.num_splits;
      any_split = any_split || split.num_splits > 1;
    }
    EXPECT_LE(work_tiles, bound.work_tiles());
    EXPECT_TRUE(bound.any_split() || !any_split);
    EXPECT_TRUE(count > 1 || bound.work_tiles() <= 2 * work_tiles);
    // Short sequences need no second launch, which combines splits.
    EXPECT_FALSE(total <= kMinKeysPerSplit && bound.any_split());
  }
}

}  // namespace
}  // namespace apb::kernels::cuda::paged
