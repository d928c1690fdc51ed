// Goal: each block is counted once, for its holder, and cached prefixes are evicted only when their
// blocks are needed and never while they are pinned. Method: small cases, and random operations
// beside a model that lists the blocks one by one.
#include "engine/schedule/kv_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace apb::schedule {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

SequenceId Id(uint64_t n) { return SequenceId{n}; }

CachedPrefix PrefixOf(uint64_t id, std::vector<int64_t> blocks) {
  CachedPrefix prefix{.id = Id(id)};
  // The tokens are the prefix's own, so that no other prompt finds it.
  prefix.tokens.assign(PrefixCache::kChunk, static_cast<int32_t>(id));
  prefix.layout = KvLayout(static_cast<int>(blocks.size()));
  prefix.own_blocks = std::move(blocks);
  return prefix;
}

TEST(KvLedger, TakesGrowsAndReleases) {
  KvLedger ledger(2, 10, true);
  EXPECT_TRUE(ledger.Take(Id(1), {4, 3}));
  EXPECT_TRUE(ledger.Take(Id(1), {6, 3}));
  EXPECT_FALSE(ledger.Take(Id(2), {1, 8})) << "rank 1 has 7 left";
  EXPECT_FALSE(ledger.holds(Id(2)));
  EXPECT_EQ(ledger.used(0), 6);
  EXPECT_EQ(ledger.used(1), 3);
  EXPECT_TRUE(ledger.Release(Id(1)));
  EXPECT_FALSE(ledger.Release(Id(1)));
  EXPECT_EQ(ledger.used(0), 0);
  EXPECT_THAT(ledger.TakeReleases(), ElementsAre(Id(1)));
  EXPECT_FALSE(ledger.has_releases());
}

TEST(KvLedger, PrefixesGiveWayTheLongestUnusedFirst) {
  KvLedger ledger(1, 10, true);
  for (const uint64_t id : {1, 2, 3}) {
    ASSERT_TRUE(ledger.Take(Id(id), {3}));
    ledger.Keep(PrefixOf(id, {2}));
  }
  EXPECT_EQ(ledger.used(0), 0);
  EXPECT_EQ(ledger.cached(0), 6);
  ledger.Pin(Id(1));
  EXPECT_TRUE(ledger.Take(Id(4), {6}));
  EXPECT_THAT(ledger.TakeReleases(), ElementsAre(Id(2)));
  EXPECT_TRUE(ledger.Take(Id(4), {8}));
  EXPECT_FALSE(ledger.Take(Id(4), {9})) << "prefix 1 is in use";
  EXPECT_EQ(ledger.used(0), 8) << "what could not grow has what it had";
  ledger.Unpin(Id(1));
  EXPECT_TRUE(ledger.Take(Id(4), {9}));
  EXPECT_THAT(ledger.TakeReleases(), ElementsAre(Id(3), Id(1)));
}

TEST(KvLedger, ContextsStayUntilTheyAreGivenUp) {
  for (const bool keep_unpinned : {true, false}) {
    KvLedger ledger(1, 10, keep_unpinned);
    ASSERT_TRUE(ledger.Take(Id(1), {4}));
    CachedPrefix context = PrefixOf(1, {4});
    context.kept = true;
    ledger.Keep(std::move(context));
    EXPECT_FALSE(ledger.Take(Id(2), {7}));
    EXPECT_EQ(ledger.kept(0), 4);
    ledger.Unkeep(Id(1));
    EXPECT_EQ(ledger.kept(0), 0);
    EXPECT_EQ(ledger.cached(0), keep_unpinned ? 4 : 0) << "without a prefix cache it goes at once";
    EXPECT_TRUE(ledger.Take(Id(2), {7}));
    EXPECT_THAT(ledger.TakeReleases(), ElementsAre(Id(1)));
  }
}

// The owner of each block, by rank. Running owners are positive, prefixes negative.
struct Model {
  std::vector<std::multiset<int64_t>> owners;
  int64_t Count(int rank, bool running) const {
    int64_t n = 0;
    for (const int64_t owner : owners[rank]) n += (owner > 0) == running;
    return n;
  }
};

TEST(KvLedger, CountsAsAListOfBlocksDoes) {
  std::mt19937 rng(7);
  const auto below = [&](int n) { return static_cast<int64_t>(rng() % n); };
  constexpr int kRanks = 3, kBlocks = 40;
  for (int round = 0; round < 40; ++round) {
    KvLedger ledger(kRanks, kBlocks, true);
    Model model{std::vector<std::multiset<int64_t>>(kRanks)};
    std::map<int64_t, std::vector<int64_t>> running;
    std::set<int64_t> prefixes;
    int64_t next = 1;
    for (int step = 0; step < 500; ++step) {
      const int64_t what = below(4);
      if (what <= 1) {  // a new sequence, or one that grows
        const int64_t id = what == 0 || running.empty()
                               ? next++
                               : std::next(running.begin(), below(running.size()))->first;
        std::vector<int64_t> wanted =
            running.contains(id) ? running[id] : std::vector<int64_t>(kRanks);
        for (int64_t& blocks : wanted) blocks += below(6);
        if (!ledger.Take(Id(id), wanted)) continue;
        for (int r = 0; r < kRanks; ++r) {
          model.owners[r].erase(id);
          for (int64_t i = 0; i < wanted[r]; ++i) model.owners[r].insert(id);
        }
        running[id] = wanted;
      } else if (!running.empty()) {
        const auto it = std::next(running.begin(), below(running.size()));
        const int64_t id = it->first;
        for (auto& blocks : model.owners) blocks.erase(id);
        if (what == 2) {
          ASSERT_TRUE(ledger.Release(Id(id)));
        } else {
          std::vector<int64_t> own = it->second;
          for (int64_t& blocks : own) blocks -= std::min<int64_t>(blocks, below(2));
          ledger.Keep(PrefixOf(id, own));
          for (int r = 0; r < kRanks; ++r)
            for (int64_t i = 0; i < own[r]; ++i) model.owners[r].insert(-id);
          prefixes.insert(id);
        }
        running.erase(it);
      }
      for (const SequenceId gone : ledger.TakeReleases()) {
        const auto id = static_cast<int64_t>(gone);
        if (prefixes.erase(id) == 0) continue;  // a running sequence, removed above
        for (auto& blocks : model.owners) blocks.erase(-id);
      }
      for (int r = 0; r < kRanks; ++r) {
        ASSERT_EQ(ledger.used(r), model.Count(r, true));
        ASSERT_EQ(ledger.cached(r), model.Count(r, false));
        ASSERT_LE(static_cast<int>(model.owners[r].size()), kBlocks);
      }
    }
    ledger.EvictAll();
    for (int r = 0; r < kRanks; ++r) ASSERT_EQ(ledger.cached(r), 0);
  }
}

}  // namespace
}  // namespace apb::schedule
