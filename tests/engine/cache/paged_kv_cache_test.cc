// Goal: no block is lost, allocated twice or shared by accident, and exhaustion changes nothing.
// Method: 10,000 sequences that come, grow and go at random on a small cache, compared with a plain
// model.
#include "engine/cache/paged_kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace apb::cache {
namespace {

constexpr KvCacheShape kShape{.layers = 2,
                              .kv_heads = 2,
                              .head_dim = 4,
                              .block_size = 8,
                              .block_count = 50,
                              .dtype = kernels::DType::kF32};

std::unique_ptr<kernels::Backend> Cpu() {
  return *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
}

std::vector<int32_t> Positions(int64_t begin, int64_t count) {
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < count; ++i) positions.push_back(static_cast<int32_t>(begin + i));
  return positions;
}

TEST(BlockPool, GivesEachBlockOnce) {
  BlockPool pool(10);
  auto first = pool.Allocate(4), second = pool.Allocate(6);
  ASSERT_TRUE(first.ok() && second.ok());
  std::set<int32_t> all(first->begin(), first->end());
  all.insert(second->begin(), second->end());
  EXPECT_EQ(all.size(), 10);
  EXPECT_EQ(*all.begin(), 0);
  EXPECT_EQ(*all.rbegin(), 9);
  EXPECT_EQ(pool.Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(pool.Allocate(0).ok());
  pool.Free(*first);
  EXPECT_EQ(pool.free_count(), 4);
  EXPECT_EQ(pool.Allocate(5).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.free_count(), 4);
  EXPECT_EQ(pool.used_count(), 6);
}

TEST(BlockPoolDeathTest, RefusesToFreeTwice) {
  BlockPool pool(4);
  const std::vector<int32_t> blocks = *pool.Allocate(1);
  pool.Free(blocks);
  EXPECT_DEATH(pool.Free(blocks), "");
  EXPECT_DEATH(pool.Free(std::vector<int32_t>{7}), "");
}

TEST(PagedKvCache, SlotsFollowTheBlocks) {
  auto backend = Cpu();
  auto cache = *PagedKvCache::Create(kShape, *backend);
  SequenceKv sequence;
  ASSERT_EQ(cache->Reserve(sequence, Positions(0, 5))->size(), 5);
  const std::vector<int64_t> slots = *cache->Reserve(sequence, Positions(5, 7));
  ASSERT_EQ(sequence.blocks.size(), 2);
  for (int64_t i = 0; i < 7; ++i) {
    EXPECT_EQ(slots[i], sequence.blocks[(5 + i) / 8] * 8 + (5 + i) % 8);
    EXPECT_EQ(sequence.positions[5 + i], 5 + i);
  }
  EXPECT_TRUE(cache->Reserve(sequence, {})->empty());
  cache->Release(sequence);
  EXPECT_EQ(sequence.slot_count(), 0);
  EXPECT_EQ(cache->pool().used_count(), 0);
  cache->Release(sequence);  // releasing an empty sequence does nothing
}

TEST(PagedKvCache, ForksShareFullBlocksAndCopyTheRest) {
  auto backend = Cpu();
  auto stream = *backend->NewStream();
  auto cache = *PagedKvCache::Create(kShape, *backend);
  for (int layer = 0; layer < kShape.layers; ++layer) {
    for (const kernels::TensorView& view : {cache->keys(layer), cache->values(layer)}) {
      for (int64_t i = 0; i < view.numel(); ++i) view.as<float>()[i] = static_cast<float>(i);
    }
  }
  SequenceKv parent;
  ASSERT_TRUE(cache->Reserve(parent, Positions(100, 21)).ok());  // slots by block: 8, 8, 5
  SequenceKv fork = *cache->Fork(parent, 119, *stream);          // slots by block: 8, 8, 3
  EXPECT_EQ(fork.positions, Positions(100, 19));
  EXPECT_EQ(cache->pool().used_count(), 4);
  EXPECT_EQ(fork.blocks[1], parent.blocks[1]);
  ASSERT_NE(fork.blocks[2], parent.blocks[2]);
  for (int layer = 0; layer < kShape.layers; ++layer) {
    for (const kernels::TensorView& view : {cache->keys(layer), cache->values(layer)}) {
      const int64_t each = view.stride[0];
      for (int64_t i = 0; i < each; ++i)
        ASSERT_EQ(view.as<float>()[fork.blocks[2] * each + i], parent.blocks[2] * each + i);
    }
  }
  EXPECT_EQ(cache->Fork(parent, 116, *stream)->blocks.size(), 2u);  // nothing to copy
  EXPECT_EQ(cache->Fork(parent, 0, *stream)->slot_count(), 0);
  cache->Release(parent);
  EXPECT_EQ(cache->pool().used_count(), 3);  // the shared blocks stay
  EXPECT_TRUE(cache->Reserve(fork, Positions(119, 6)).ok());
  EXPECT_EQ(fork.blocks.size(), 4u);
}

TEST(PagedKvCache, LayersDoNotOverlap) {
  auto backend = Cpu();
  auto cache = *PagedKvCache::Create(kShape, *backend);
  const auto numbers = [&](const kernels::TensorView& view) {
    EXPECT_THAT(std::vector<int64_t>(view.shape.begin(), view.shape.end()),
                testing::ElementsAre(50, 2, 8, 4));
    return std::span<float>(view.as<float>(), view.numel());
  };
  float mark = 0;
  for (int layer = 0; layer < 2; ++layer) {
    for (float& x : numbers(cache->keys(layer))) x = mark;
    for (float& x : numbers(cache->values(layer))) x = mark + 1;
    mark += 2;
  }
  mark = 0;
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_THAT(numbers(cache->keys(layer)), testing::Each(mark));
    EXPECT_THAT(numbers(cache->values(layer)), testing::Each(mark + 1));
    mark += 2;
  }
}

TEST(PagedKvCache, RefusesImpossibleShapes) {
  auto backend = Cpu();
  KvCacheShape shape = kShape;
  shape.block_count = 0;
  EXPECT_EQ(PagedKvCache::Create(shape, *backend).status().code(),
            absl::StatusCode::kInvalidArgument);
  shape.block_count = int64_t{1} << 30;
  shape.head_dim = int64_t{1} << 20;
  EXPECT_EQ(PagedKvCache::Create(shape, *backend).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(PagedKvCache, TenThousandSequencesLeakNothing) {
  auto backend = Cpu();
  auto cache = *PagedKvCache::Create(kShape, *backend);
  std::mt19937 rng(1);
  std::vector<SequenceKv> live;
  int64_t refused = 0, started = 0;
  const auto blocks_of = [](int64_t tokens) { return (tokens + 7) / 8; };
  while (started < 10'000) {
    const int64_t count = rng() % 60;
    if (rng() % 3 == 0 || live.empty()) {
      live.emplace_back();
      ++started;
    }
    SequenceKv& sequence = live[rng() % live.size()];
    const SequenceKv before = sequence;
    const int64_t free = cache->pool().free_count();
    const int64_t extra = blocks_of(before.slot_count() + count) - blocks_of(before.slot_count());
    auto slots = cache->Reserve(sequence, Positions(before.slot_count(), count));
    ASSERT_EQ(slots.ok(), extra <= free);
    if (!slots.ok()) {
      ++refused;
      ASSERT_EQ(slots.status().code(), absl::StatusCode::kResourceExhausted);
      ASSERT_EQ(sequence.blocks, before.blocks);
      ASSERT_EQ(sequence.positions, before.positions);
    }
    int64_t used = 0;
    std::set<int32_t> owned;
    for (const SequenceKv& s : live) {
      ASSERT_EQ(static_cast<int64_t>(s.blocks.size()), blocks_of(s.slot_count()));
      used += static_cast<int64_t>(s.blocks.size());
      owned.insert(s.blocks.begin(), s.blocks.end());
    }
    ASSERT_EQ(used, cache->pool().used_count());
    ASSERT_EQ(static_cast<int64_t>(owned.size()), used);  // no block has two owners
    if (!slots.ok() || rng() % 4 == 0) {
      const size_t victim = rng() % live.size();
      cache->Release(live[victim]);
      live.erase(live.begin() + static_cast<int64_t>(victim));
    }
  }
  EXPECT_GT(refused, 100);
  for (SequenceKv& sequence : live) cache->Release(sequence);
  EXPECT_EQ(cache->pool().free_count(), 50);
}

}  // namespace
}  // namespace apb::cache
