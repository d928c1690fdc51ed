// Goal: the cost model counts the work and the bytes of a prefill, and has the properties that
// docs/algorithms.md promises. Method: values by hand; thresholds and monotonicity over lengths and
// speeds. strategy_test's CostModelCountsWhatIsSent compares the bytes with those really sent.
#include "engine/context_parallel/cost.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/context_parallel/ring/ring.h"
#include "engine/context_parallel/strategies.h"

namespace apb::context_parallel {
namespace {

// 3 layers. A row is multiplied by these numbers of weights: K and V 2*8*8 = 128, q and o
// 2*8*16 = 256, MLP 3*8*10 = 240.
constexpr ModelShape kSmall{.layers = 3,
                            .hidden_size = 8,
                            .mlp_size = 10,
                            .query_heads = 4,
                            .kv_heads = 2,
                            .head_dim = 4,
                            .element_bytes = 2};
// One operation, or one byte, takes a second.
constexpr MachineSpeed kUnit{.product_flops = 1,
                             .attention_flops = 1,
                             .link_bytes_per_second = 1,
                             .link_latency_seconds = 0};
constexpr double kRowFlops = 2 * (128 + 256 + 240), kLastRowFlops = 2 * 128, kPairFlops = 4 * 16;

constexpr ModelShape kLlama8B{.layers = 32,
                              .hidden_size = 4096,
                              .mlp_size = 14336,
                              .query_heads = 32,
                              .kv_heads = 8,
                              .head_dim = 128,
                              .element_bytes = 2};

ShardPlan Plan(std::string_view strategy, int64_t tokens, const StrategyOptions& options,
               int64_t cached = 0) {
  auto plan = MakeShardPlan(
      strategy, {.document_length = cached + tokens, .cached_length = cached, .query_length = 1},
      options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : ShardPlan();
}

PrefillCost Cost(std::string_view strategy, int ranks, int64_t tokens, const ModelShape& model,
                 const MachineSpeed& speed, int64_t cached = 0) {
  const int hosts = strategy == "apb" || strategy == "star" ? 8 : ranks;
  return PredictPrefill(Plan(strategy, tokens, {.hosts = hosts}, cached), ranks, cached, model,
                        speed);
}

TEST(CostModel, FullByHand) {
  const PrefillCost cost = PredictPrefill(Plan("full", 5, {}), 2, 0, kSmall, kUnit);
  // Two whole layers of 5 rows that see 1 + 2 + 3 + 4 + 5 keys; of the third layer K and V only.
  const double expected = 2 * (5 * kRowFlops + 15 * kPairFlops) + 5 * kLastRowFlops;
  ASSERT_EQ(cost.compute_seconds.size(), 2u);
  EXPECT_DOUBLE_EQ(cost.compute_seconds[0], expected);
  EXPECT_DOUBLE_EQ(cost.compute_seconds[1], 0);
  EXPECT_DOUBLE_EQ(cost.seconds, expected);
  EXPECT_EQ(cost.bytes_sent, 0);
}

TEST(CostModel, ApbByHand) {
  ModelShape model = kSmall;
  model.retaining_width = 6;
  // 4 hosts with shards of 10 on 2 ranks; anchor 4, passing 3. Host 0 passes 3 on too, because 6 of
  // its tokens are not in the anchor.
  const ShardPlan plan = Plan("apb", 40, {.hosts = 4, .anchor_length = 4, .passing_length = 3});
  const PrefillCost cost = PredictPrefill(plan, 2, 0, model, kUnit);
  const double score = 2 * 6 * (4 * (4 + 2 * 2) + 2);
  // Rank 0: host 0 sees its shard; host 1 sees its shard, the anchor and 3 passed tokens; the
  // anchor sees itself.
  const double pairs0 = 55 + (55 + 10 * (4 + 3)) + 10;
  const double rank0 = 2 * (24 * kRowFlops + 20 * score + pairs0 * kPairFlops) + 24 * kLastRowFlops;
  EXPECT_DOUBLE_EQ(cost.compute_seconds[0], rank0);
  // Rank 1: hosts 2 and 3 see 6 and 9 passed tokens. The last host's tokens are not scored.
  const double pairs1 = (55 + 10 * (4 + 6)) + (55 + 10 * (4 + 9)) + 10;
  const double rank1 = 2 * (24 * kRowFlops + 10 * score + pairs1 * kPairFlops) + 24 * kLastRowFlops;
  EXPECT_DOUBLE_EQ(cost.compute_seconds[1], rank1);
  // Each rank sends 2 hosts x 3 tokens x K and V of 8 numbers x 2 bytes, in each of 2 layers.
  const double part = 2 * 3 * 16 * 2;
  EXPECT_DOUBLE_EQ(cost.waiting_seconds, 2 * part);
  EXPECT_EQ(cost.bytes_sent, static_cast<int64_t>(2 * 2 * part));
  EXPECT_DOUBLE_EQ(cost.seconds, std::max(rank0, rank1) + 2 * part);
}

TEST(CostModel, RingsByHand) {
  // 2 ranks, 8 tokens: chunks of 2, pairs (1 + 2) + (7 + 8) on rank 0, (3 + 4) + (5 + 6) on rank 1.
  const double compute = 2 * (4 * kRowFlops + 18 * kPairFlops) + 4 * kLastRowFlops;
  for (const char* strategy : {"ring_kv", "ring_q", "token_ring"}) {
    const PrefillCost cost = Cost(strategy, 2, 8, kSmall, kUnit);
    EXPECT_DOUBLE_EQ(cost.compute_seconds[0], compute) << strategy;
    EXPECT_DOUBLE_EQ(cost.compute_seconds[1], compute) << strategy;
    // Half of a layer's attention, 9 pairs, hides a message of 4 x 32 or 4 x 16 x 2 bytes. The
    // returning results, 4 rows x 4 heads x (4 + 1) x 4 bytes, are not hidden.
    EXPECT_DOUBLE_EQ(cost.waiting_seconds, strategy[5] == 'k' ? 0 : 2 * 4 * 4 * 5 * 4) << strategy;
  }
  EXPECT_EQ(Cost("ring_kv", 2, 8, kSmall, kUnit).bytes_sent, 2 * 2 * 4 * 16 * 2);
  EXPECT_EQ(Cost("ring_q", 2, 8, kSmall, kUnit).bytes_sent, 2 * 2 * (4 * 16 * 2 + 4 * 4 * 5 * 4));
  MachineSpeed slow = kUnit;
  slow.link_latency_seconds = 10000;
  EXPECT_DOUBLE_EQ(Cost("ring_kv", 2, 8, kSmall, slow).waiting_seconds,
                   2 * (10000 + 4 * 32 - 9 * kPairFlops));
}

TEST(CostModel, RingsBehindAPrefixByHand) {
  // The same 4 rows on each rank see 6 more keys. K and V of 3 cached tokens travel with a rank's
  // own.
  const double compute = 2 * (4 * kRowFlops + (18 + 4 * 6) * kPairFlops) + 4 * kLastRowFlops;
  for (const char* strategy : {"ring_kv", "ring_q"}) {
    const PrefillCost cost = Cost(strategy, 2, 8, kSmall, kUnit, 6);
    EXPECT_DOUBLE_EQ(cost.compute_seconds[0], compute) << strategy;
    EXPECT_DOUBLE_EQ(cost.compute_seconds[1], compute) << strategy;
  }
  EXPECT_EQ(Cost("ring_kv", 2, 8, kSmall, kUnit, 6).bytes_sent, 2 * 2 * 7 * 16 * 2);
  EXPECT_EQ(Cost("ring_q", 2, 8, kSmall, kUnit, 6).bytes_sent,
            Cost("ring_q", 2, 8, kSmall, kUnit).bytes_sent);
}

TEST(CostModel, UlyssesByHand) {
  // Each rank computes half of 36 pairs. It sends 2 of 4 query heads and 1 of 2 KV heads (K and V)
  // of its 4 rows, and returns the outputs of the other rank's 4 rows for 2 heads.
  const PrefillCost cost = Cost("ulysses", 2, 8, kSmall, kUnit);
  EXPECT_DOUBLE_EQ(cost.compute_seconds[0],
                   2 * (4 * kRowFlops + 18 * kPairFlops) + 4 * kLastRowFlops);
  const double rank_bytes = 4 * (2 + 2 + 2) * 4 * 2;
  EXPECT_DOUBLE_EQ(cost.waiting_seconds, 2 * rank_bytes);
  EXPECT_EQ(cost.bytes_sent, static_cast<int64_t>(2 * 2 * rank_bytes));
}

// docs/algorithms.md, "Choosing": queries are the smaller message if T / (T + P) < 2 Nkv / Nq.
TEST(CostModel, QueriesAreSmallerBelowTheThreshold) {
  for (const ModelShape& model : {kSmall, kLlama8B}) {
    const double threshold = 2.0 * static_cast<double>(model.kv_heads) / model.query_heads;
    const int64_t all = 1 << 20;
    for (const int ranks : {2, 4, 8}) {
      for (const double share : {0.01, 0.3, 0.49, 0.51, 0.9, 1.0}) {
        const auto fresh = static_cast<int64_t>(share * all);
        const bool smaller =
            QueryStepBytes(ranks, fresh, model) < KeyStepBytes(ranks, all - fresh, fresh, model);
        EXPECT_EQ(smaller, share < threshold) << share << " " << threshold;
      }
    }
  }
}

// Attention hides keys and values from T = H C Nkv e / (2 Nq BW) on, if a long cached prefix makes
// the pairs of a step nearly a rectangle.
TEST(CostModel, KeysAreHiddenFromTheThresholdOn) {
  const MachineSpeed speed{.product_flops = 1e14,
                           .attention_flops = 1e14,
                           .link_bytes_per_second = 1e10,
                           .link_latency_seconds = 0};
  const int ranks = 8;
  const double threshold = ranks * 1e14 * 8 * 2 / (2 * 32 * 1e10);
  const auto waiting = [&](double tokens) {
    return Cost("ring_kv", ranks, static_cast<int64_t>(tokens), kLlama8B, speed, 100 << 20)
        .waiting_seconds;
  };
  EXPECT_GT(waiting(0.95 * threshold), 0);
  EXPECT_EQ(waiting(1.05 * threshold), 0);
  // Above the threshold, only compute counts.
  const PrefillCost cost =
      Cost("ring_kv", ranks, static_cast<int64_t>(2 * threshold), kLlama8B, speed, 100 << 20);
  EXPECT_EQ(cost.seconds,
            *std::max_element(cost.compute_seconds.begin(), cost.compute_seconds.end()));
}

// With few new tokens after a long prefix, ring_q is faster. With new tokens only, ring_kv is.
TEST(CostModel, RingQWinsBehindALongPrefixOnly) {
  const MachineSpeed speed{.product_flops = 1e14, .attention_flops = 1e14};
  EXPECT_LT(Cost("ring_q", 4, 256, kLlama8B, speed, 1 << 20).seconds,
            Cost("ring_kv", 4, 256, kLlama8B, speed, 1 << 20).seconds);
  EXPECT_GT(Cost("ring_q", 4, 1 << 17, kLlama8B, speed).seconds,
            Cost("ring_kv", 4, 1 << 17, kLlama8B, speed).seconds);
}

TEST(CostModel, MoreTokensCostMoreAndFasterMachinesLess) {
  const MachineSpeed speed;
  for (const char* strategy :
       {"full", "ring_kv", "ring_q", "token_ring", "ulysses", "star", "apb"}) {
    double before = 0;
    for (int64_t tokens = 256; tokens <= 1 << 18; tokens *= 2) {
      const double seconds = Cost(strategy, 4, tokens, kLlama8B, speed).seconds;
      EXPECT_GT(seconds, before) << strategy << " " << tokens;
      before = seconds;
    }
    for (double MachineSpeed::*part : {&MachineSpeed::product_flops, &MachineSpeed::attention_flops,
                                       &MachineSpeed::link_bytes_per_second}) {
      MachineSpeed faster = speed;
      faster.*part *= 2;
      EXPECT_LE(Cost(strategy, 4, 65536, kLlama8B, faster).seconds,
                Cost(strategy, 4, 65536, kLlama8B, speed).seconds)
          << strategy;
    }
  }
  // The purpose of the strategies: exact ones divide the work of full, and APB needs less.
  EXPECT_LT(Cost("ring_kv", 4, 65536, kLlama8B, speed).seconds,
            Cost("full", 4, 65536, kLlama8B, speed).seconds / 3);
  EXPECT_LT(Cost("apb", 4, 65536, kLlama8B, speed).seconds,
            Cost("ring_kv", 4, 65536, kLlama8B, speed).seconds);
}

TEST(CostModel, NothingToComputeCostsNothing) {
  for (const char* strategy :
       {"full", "ring_kv", "ring_q", "token_ring", "ulysses", "star", "apb"}) {
    EXPECT_EQ(Cost(strategy, 4, 0, kLlama8B, {}).seconds, 0) << strategy;
  }
}

// The nearest power of two of row seconds / pair seconds.
TEST(CostModel, RowCostInPairs) {
  EXPECT_EQ(RowCostInPairs(kSmall, kUnit), 16);  // 1248 / 64 = 19.5
  MachineSpeed speed = kUnit;
  speed.attention_flops = 0.5;
  EXPECT_EQ(RowCostInPairs(kSmall, speed), 8);
  speed.attention_flops = 1;
  speed.product_flops = 0.5;
  EXPECT_EQ(RowCostInPairs(kSmall, speed), 32);
  speed.product_flops = 1e9;
  EXPECT_EQ(RowCostInPairs(kSmall, speed), 1);
  ModelShape scored = kSmall;
  scored.retaining_width = 24;  // 1632 operations: 45 pairs
  EXPECT_EQ(RowCostInPairs(scored, kUnit), 32);
}

}  // namespace
}  // namespace apb::context_parallel
