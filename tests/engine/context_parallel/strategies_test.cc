// Goal: the plans of every strategy are right, and the table of strategies is complete. Method: the
// authors' lengths, edge cases by hand, the promises of shard_plan.h over random prompts and
// options, and properties of every row of the table.
#include "engine/context_parallel/strategies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "engine/context_parallel/apb/balanced_shards.h"

namespace apb::context_parallel {
namespace {

using testing::ElementsAre;

ShardPlan Plan(std::string_view strategy, const PromptLayout& layout,
               const StrategyOptions& options) {
  auto plan = MakeShardPlan(strategy, layout, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : ShardPlan();
}

// An anchor's row: a token of the document, or of the embedded query.
AnchorSource D(int32_t index) { return {.index = index}; }
AnchorSource Q(int32_t index) { return {.in_query = true, .index = index}; }

TEST(Strategies, RowsAreWhole) {
  std::set<std::string_view> names;
  for (const StrategyInfo* strategy : Strategies()) {
    EXPECT_TRUE(names.insert(strategy->name).second) << strategy->name;
    EXPECT_EQ(FindStrategy(strategy->name), strategy);
    EXPECT_TRUE(strategy->supports && strategy->plan && strategy->needs_anchor && strategy->work &&
                strategy->traffic && strategy->prefill_bytes && strategy->create)
        << strategy->name;
    // A strategy that starts from a cached prefix is exact: it learns nothing of the prefix but
    // `cached_slots`, so it could not build an anchor.
    EXPECT_FALSE(strategy->starts_from_prefix && !strategy->exact) << strategy->name;
  }
  EXPECT_EQ(FindStrategy("magic"), nullptr);
  const absl::Status unknown = UnknownStrategy("magic");
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string_view name : names)
    EXPECT_THAT(std::string(unknown.message()), testing::HasSubstr(std::string(name)));
}

// The order matters, because `auto` only moves on to a strategy that saves time.
TEST(Strategies, AutoTriesThemInOrder) {
  const auto names = [](bool exact) {
    std::vector<std::string> list;
    for (const StrategyInfo* strategy : AutoCandidates(exact)) list.emplace_back(strategy->name);
    return list;
  };
  EXPECT_THAT(names(true), ElementsAre("full", "ring_kv", "ulysses", "token_ring", "ring_q"));
  EXPECT_THAT(names(false), ElementsAre("apb"));
  EXPECT_EQ(FirstExact(HostsRule::kOne).name, "full");
  EXPECT_EQ(FirstExact(HostsRule::kOneOnEachRank).name, "ring_kv");
}

TEST(Strategies, UlyssesNeedsHeadsThatDivide) {
  const auto supports = [](int64_t query_heads, int64_t kv_heads, int ranks) {
    return FindStrategy("ulysses")
        ->supports({.query_heads = query_heads, .kv_heads = kv_heads}, ranks)
        .ok();
  };
  EXPECT_TRUE(supports(8, 2, 2));
  EXPECT_TRUE(supports(8, 2, 4));  // two ranks have the same KV head
  EXPECT_FALSE(supports(8, 2, 3));
  EXPECT_FALSE(supports(12, 3, 2));  // a share of 6 query heads is one and a half KV heads
}

TEST(StrategyPlan, HostsFitTheRanks) {
  const PromptLayout layout{.document_length = 60, .query_length = 1};
  EXPECT_TRUE(CheckRanks(Plan("full", layout, {}), 3).ok());
  EXPECT_TRUE(CheckRanks(Plan("apb", layout, {.hosts = 6}), 3).ok());
  EXPECT_FALSE(CheckRanks(Plan("apb", layout, {.hosts = 4}), 3).ok());
  EXPECT_TRUE(CheckRanks(Plan("ring_kv", layout, {.hosts = 3}), 3).ok());
  EXPECT_FALSE(CheckRanks(Plan("ring_kv", layout, {.hosts = 6}), 3).ok());
  EXPECT_FALSE(CheckRanks(Plan("ulysses", layout, {.hosts = 1}), 3).ok());
}

TEST(StrategyPlan, DefaultLengthsAreTheAuthors) {
  struct Row {
    int64_t document, anchor, passing;
  };
  for (const Row& row :
       {Row{32 << 10, 1024, 512}, Row{64 << 10, 2048, 1024}, Row{128 << 10, 4096, 2048},
        Row{256 << 10, 8192, 4096}, Row{512 << 10, 8192, 8192}, Row{1 << 20, 8192, 8192}}) {
    const ShardPlan plan = Plan("apb",
                                {.document_length = row.document,
                                 .query_length = 50,
                                 .query_insert_position = 16,
                                 .embedded_query_length = 40},
                                {.hosts = 8});
    EXPECT_EQ(static_cast<int64_t>(plan.anchor.size()), row.anchor);
    EXPECT_EQ(plan.hosts[1].passing_length, row.passing);
    EXPECT_EQ(plan.hosts[7].passing_length, 0);  // no host after the last one would read it
  }
}

TEST(StrategyPlan, RingsSpreadWhatIsNotCached) {
  const PromptLayout layout{.document_length = 50, .cached_length = 10, .query_length = 1};
  const ShardPlan ring = Plan("ring_kv", layout, {.hosts = 2});
  EXPECT_EQ(ring.document_length(), 40);
  EXPECT_THAT(ring.hosts[0].local, ElementsAre(TokenSpan{10, 20}, TokenSpan{40, 50}));
  EXPECT_THAT(ring.hosts[1].local, ElementsAre(TokenSpan{20, 30}, TokenSpan{30, 40}));
  EXPECT_THAT(Plan("full", layout, {}).hosts[0].local, ElementsAre(TokenSpan{10, 50}));
  for (const char* strategy : {"apb", "star", "ulysses"}) {
    EXPECT_EQ(MakeShardPlan(strategy, layout, {.hosts = 2}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(MakeShardPlan("ring_kv", {.document_length = 5, .cached_length = 6}, {}).ok());
}

// The anchor is document head, embedded query, more document. Its length includes the query.
TEST(StrategyPlan, AnchorHasTheQueryBehindTheHead) {
  const PromptLayout layout{.document_length = 40,
                            .query_length = 9,
                            .query_insert_position = 2,
                            .embedded_query_length = 3};
  EXPECT_THAT(Plan("apb", layout, {.hosts = 2, .anchor_length = 8}).anchor,
              ElementsAre(D(0), D(1), Q(0), Q(1), Q(2), D(2), D(3), D(4)));
  // An anchor that is too short for the query keeps the query's end.
  EXPECT_THAT(Plan("apb", layout, {.hosts = 2, .anchor_length = 4}).anchor,
              ElementsAre(D(0), D(1), Q(1), Q(2)));
  EXPECT_THAT(Plan("apb", layout, {.hosts = 2, .anchor_length = 1}).anchor, ElementsAre(D(0)));
  EXPECT_THAT(Plan("apb", layout, {.hosts = 2, .anchor_length = 0}).anchor, ElementsAre());
  // Host 0 passes on all of its tokens that are not in the anchor, and no others.
  const ShardPlan plan =
      Plan("apb", layout, {.hosts = 2, .anchor_length = 8, .passing_length = 100});
  EXPECT_EQ(plan.hosts[0].passing_candidates, (TokenSpan{5, 20}));
  EXPECT_EQ(plan.hosts[0].passing_length, 15);
}

// A host's cost in query-key pairs, by the formula of balanced_shards.h.
double HostSeconds(int host, int64_t tokens, int64_t anchor, int64_t passing, int64_t row_cost) {
  if (tokens == 0) return 0;
  const double b = static_cast<double>(tokens), a = host > 0 ? static_cast<double>(anchor) : 0,
               r = static_cast<double>(row_cost);
  return b * (r + a + static_cast<double>(host * passing) + b / 2) + a * (r + a / 2);
}

TEST(BalancedShards, AllHostsTakeEquallyLong) {
  for (const int hosts : {2, 3, 8, 64}) {
    for (const int64_t row_cost : {1, 256, 4096, 1 << 20}) {
      const int64_t n = 131072, b = n / hosts, anchor = b / 4, passing = b / 8;
      const std::vector<int64_t> lengths = BalancedShards(n, hosts, anchor, passing, row_cost);
      ASSERT_EQ(static_cast<int>(lengths.size()), hosts);
      EXPECT_EQ(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), n);
      EXPECT_TRUE(std::is_sorted(lengths.rbegin(), lengths.rend()));
      EXPECT_GT(lengths[0], b);
      const double first = HostSeconds(0, lengths[0], anchor, passing, row_cost);
      for (int h = 1; h < hosts; ++h) {
        // Equal up to one token of each host. The first host has the tokens that rounding left
        // over.
        const double others = HostSeconds(h, lengths[h], anchor, passing, row_cost);
        EXPECT_NEAR(others / first, 1, 2.0 * hosts / static_cast<double>(lengths[h]))
            << hosts << " " << row_cost << " " << h;
      }
    }
  }
}

TEST(BalancedShards, ByHand) {
  // If a row costs much more than all pairs, and there is no anchor, shards are equally long.
  EXPECT_THAT(BalancedShards(12, 3, 0, 0, 1 << 30), ElementsAre(4, 4, 4));
  // r = 1: 5 tokens cost 17.5. With an anchor of 2 (fixed cost 4) and 1 passed token, 3 cost 20.5.
  EXPECT_THAT(BalancedShards(8, 2, 2, 1, 1), ElementsAre(5, 3));
  // The anchor alone would cost more than all tokens on the first host.
  EXPECT_THAT(BalancedShards(3, 4, 50, 1, 10), ElementsAre(3, 0, 0, 0));
  EXPECT_THAT(BalancedShards(0, 2, 5, 5, 10), ElementsAre(0, 0));
  EXPECT_THAT(BalancedShards(9, 1, 5, 5, 10), ElementsAre(9));
}

// Anchor and passing lengths are those of equal shards; only the borders move.
TEST(StrategyPlan, BalancedBlocksKeepTheLengths) {
  const PromptLayout layout{
      .document_length = 32 << 10, .query_length = 50, .embedded_query_length = 40};
  const ShardPlan equal = Plan("apb", layout, {.hosts = 8});
  const ShardPlan balanced = Plan("apb", layout, {.hosts = 8, .row_cost_pairs = 2048});
  EXPECT_EQ(balanced.anchor, equal.anchor);
  for (int h = 0; h < 8; ++h)
    EXPECT_EQ(balanced.hosts[h].passing_length, equal.hosts[h].passing_length);
  EXPECT_GT(balanced.hosts[0].local_length(), 4096);
  EXPECT_LT(balanced.hosts[7].local_length(), 4096);
  // The other strategies have nothing to balance.
  for (const char* strategy : {"full", "star", "ring_kv", "ulysses"}) {
    EXPECT_EQ(Plan(strategy, layout, {.hosts = 8, .row_cost_pairs = 2048}),
              Plan(strategy, layout, {.hosts = 8}));
  }
}

// With zigzag shards, all hosts have equally many causal pairs.
TEST(StrategyPlan, RingsAreBalanced) {
  for (const char* strategy : {"ring_kv", "ring_q", "token_ring"}) {
    const ShardPlan plan = Plan(strategy, {.document_length = 60, .query_length = 1}, {.hosts = 3});
    int64_t expected = -1;
    for (const HostShard& host : plan.hosts) {
      int64_t pairs = 0;
      for (const TokenSpan& span : host.local)
        for (int64_t t = span.begin; t < span.end; ++t) pairs += t + 1;
      if (expected < 0) expected = pairs;
      EXPECT_EQ(pairs, expected);
    }
    EXPECT_THAT(plan.hosts[1].local, ElementsAre(TokenSpan{10, 20}, TokenSpan{40, 50}));
  }
}

TEST(StrategyPlan, ExactStrategiesCoverEachTokenOnce) {
  for (const char* strategy : {"full", "ring_kv", "ring_q", "token_ring", "ulysses"}) {
    EXPECT_TRUE(FindStrategy(strategy)->exact);
    for (const int hosts : {1, 2, 3, 8}) {
      for (int64_t n = 0; n < 60; ++n) {
        const ShardPlan plan =
            Plan(strategy, {.document_length = n, .query_length = 1}, {.hosts = hosts});
        std::vector<int> copies(n, 0);
        for (const HostShard& host : plan.hosts) {
          for (const TokenSpan& span : host.local)
            for (int64_t t = span.begin; t < span.end; ++t) ++copies[t];
        }
        EXPECT_EQ(copies, std::vector<int>(n, 1)) << strategy << " " << plan.DebugString();
      }
    }
  }
  EXPECT_FALSE(FindStrategy("apb")->exact);
  EXPECT_FALSE(FindStrategy("star")->exact);
}

TEST(StrategyPlan, FewerTokensThanHosts) {
  for (const int64_t n : {0, 1, 3}) {
    for (const char* strategy : {"apb", "star"}) {
      const ShardPlan plan =
          Plan(strategy, {.document_length = n, .query_length = 1}, {.hosts = 4});
      ASSERT_EQ(plan.hosts.size(), 4u);
      EXPECT_EQ(plan.document_length(), n);
      EXPECT_FALSE(plan.hosts[3].sees_anchor);  // it has no rows
      EXPECT_EQ(plan.hosts[std::max<int64_t>(0, n - 1)].passing_length, 0);
    }
  }
}

TEST(StrategyPlan, RefusesNonsense) {
  const PromptLayout layout{.document_length = 10, .query_length = 1};
  EXPECT_FALSE(MakeShardPlan("", layout, {}).ok());
  EXPECT_FALSE(MakeShardPlan("apb", layout, {.hosts = 0}).ok());
  EXPECT_FALSE(MakeShardPlan("apb", layout, {.hosts = 1 << 20}).ok());
  EXPECT_FALSE(MakeShardPlan("apb", layout, {.hosts = 2, .anchor_length = -2}).ok());
  EXPECT_FALSE(MakeShardPlan("apb", layout, {.hosts = 2, .passing_length = -2}).ok());
  EXPECT_FALSE(MakeShardPlan("apb", layout, {.hosts = 2, .row_cost_pairs = -1}).ok());
  EXPECT_FALSE(MakeShardPlan("full", {.document_length = -1}, {}).ok());
  EXPECT_FALSE(MakeShardPlan("full", {.document_length = int64_t{1} << 40}, {}).ok());
}

void CheckPromises(const ShardPlan& plan, int64_t n) {
  int64_t next = 0;
  const int last = static_cast<int>(plan.hosts.size()) - 1;
  for (int h = 0; h <= last; ++h) {
    const HostShard& host = plan.hosts[h];
    for (const TokenSpan& span : host.local) {
      EXPECT_EQ(span.begin, next);  // no gap, no repeat
      EXPECT_GT(span.length(), 0);
      next = span.end;
    }
    EXPECT_EQ(host.sees_anchor, h > 0 && host.local_length() > 0 && !plan.anchor.empty());
    EXPECT_LE(host.passing_length, host.passing_candidates.length());
    if (host.passing_length == 0) continue;
    EXPECT_GE(host.passing_candidates.begin, host.local[0].begin);
    EXPECT_LE(host.passing_candidates.end, host.local[0].end);
    EXPECT_LT(next, n);  // a later host has tokens
  }
  EXPECT_EQ(next, n);
  // The anchor's document tokens are 0, 1, 2, ..., at most all of host 0's. Its query rows are one
  // run.
  int64_t document = 0, runs = 0;
  for (size_t i = 0; i < plan.anchor.size(); ++i) {
    if (!plan.anchor[i].in_query) {
      EXPECT_EQ(plan.anchor[i].index, document++);
    } else {
      runs += i == 0 || !plan.anchor[i - 1].in_query;
    }
  }
  EXPECT_LE(runs, 1);
  if (plan.anchor.empty()) return;
  EXPECT_LE(static_cast<int64_t>(plan.anchor.size()), plan.hosts[0].local_length());
  // Every token of host 0 is in the anchor or may be passed on.
  if (plan.hosts[0].passing_length > 0) {
    EXPECT_EQ(plan.hosts[0].passing_candidates.begin, document);
  }
}

TEST(StrategyPlan, PromisesOverRandomPrompts) {
  std::mt19937 rng(5);
  const auto below = [&](int n) { return static_cast<int64_t>(rng() % n); };
  for (int round = 0; round < 20000; ++round) {
    const PromptLayout layout{.document_length = below(200),
                              .query_length = 1 + below(50),
                              .query_insert_position = below(3) == 0 ? below(300) : below(8),
                              .embedded_query_length = below(60)};
    const StrategyOptions options{.hosts = static_cast<int>(1 + below(12)),
                                  .anchor_length = below(100) - 1,
                                  .passing_length = below(2) == 0 ? -1 : below(300),
                                  .row_cost_pairs = below(2) == 0 ? 0 : 1 + below(500)};
    for (const char* strategy : {"full", "apb", "star"}) {
      const ShardPlan plan = Plan(strategy, layout, options);
      CheckPromises(plan, layout.document_length);
      ASSERT_FALSE(HasFailure()) << plan.DebugString();
      const int ranks = static_cast<int>(plan.hosts.size());
      int64_t kept = 0;
      for (int r = 0; r < ranks; ++r) kept += DocumentTokensOfRank(plan, ranks, r);
      ASSERT_EQ(kept, layout.document_length);
    }
  }
}

}  // namespace
}  // namespace apb::context_parallel
