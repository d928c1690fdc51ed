// Goal: `auto` becomes an approximate strategy where it may and where that pays, else the exact
// strategy that the cost model takes to be fastest, and the same one each time. Method: requests
// resolved alone, over lengths, numbers of ranks and link speeds.
#include "engine/schedule/auto_strategy.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>

#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"
#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

TEST(Scheduler, AutoChoosesByLengthAndExactness) {
  for (auto [document, exact, strategy] :
       {std::tuple<int64_t, bool, const char*>{15, false, "full"},
        {20, false, "ring_kv"},
        {100, false, "apb"},
        {100, true, "ring_kv"},
        {15, true, "full"}}) {
    SchedulerOptions options = TestOptions();
    options.ring_from = 16;
    Scheduler scheduler(options);
    FakeExecutor run(scheduler);
    Request r = MakeRequest(1, document, 3, 1);
    r.exact = exact;
    scheduler.Submit(r, run.now());
    run.RunUntilIdle();
    EXPECT_EQ(run.ends.at(SequenceId{1}).strategy, strategy);
  }
}

// The strategy that `auto` becomes for an exact request.
std::string ExactChoice(const SchedulerOptions& options, int64_t document) {
  Request r = MakeRequest(1, document, 3, 1);
  r.exact = true;
  const auto layout = ResolveRequest(options, r);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return r.spec.strategy;
}

SchedulerOptions LargeOptions(int ranks) {
  SchedulerOptions options = TestOptions();
  options.ranks = ranks;
  options.default_hosts = ranks * 2;
  options.blocks_per_rank = 1 << 20;
  options.max_model_len = 1 << 20;
  options.model = {.layers = 32,
                   .hidden_size = 4096,
                   .mlp_size = 14336,
                   .query_heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128};
  return options;
}

TEST(Scheduler, ExactAutoIsByTheCostModel) {
  SchedulerOptions options = LargeOptions(4);
  EXPECT_EQ(ExactChoice(options, 1), "full");  // more ranks gain nothing
  EXPECT_EQ(ExactChoice(options, 10000), "ring_kv");
  options.speed.link_latency_seconds = 10;  // every message costs more than it saves
  EXPECT_EQ(ExactChoice(options, 10000), "full");
  options.blocks_per_rank = 1000;  // one rank cannot hold the document
  EXPECT_EQ(ExactChoice(options, 10000), "ring_kv");
  options = LargeOptions(4);
  options.ring_from = 20000;
  EXPECT_EQ(ExactChoice(options, 10000), "full");
  EXPECT_EQ(ExactChoice(LargeOptions(1), 10000), "full");
}

// At no link speed is another strategy much faster, and the same prompt always gets the same
// strategy.
TEST(Scheduler, ExactAutoIsNearTheBest) {
  std::set<std::string> chosen;
  for (const int ranks : {2, 4, 8}) {
    for (double bytes_per_second = 1e6; bytes_per_second < 1e12; bytes_per_second *= 3) {
      for (const int64_t document : {64, 1000, 8000, 100000}) {
        SchedulerOptions options = LargeOptions(ranks);
        options.speed.link_bytes_per_second = bytes_per_second;
        const auto seconds = [&](std::string_view strategy) {
          const auto plan = context_parallel::MakeShardPlan(
              strategy, {.document_length = document, .query_length = 1}, {.hosts = ranks});
          return context_parallel::PredictPrefill(*plan, ranks, 0, options.model, options.speed)
              .seconds;
        };
        const std::string choice = ExactChoice(options, document);
        EXPECT_EQ(ExactChoice(options, document), choice);
        chosen.insert(choice);
        for (const char* other : {"full", "ring_kv", "ring_q", "token_ring", "ulysses"}) {
          // Each comparison in the choice tolerates a tenth.
          EXPECT_LE(seconds(choice) * 0.9 * 0.9, seconds(other) + 2e-3)
              << choice << " for " << document << " tokens, " << bytes_per_second << ": " << other;
        }
      }
    }
  }
  EXPECT_TRUE(chosen.contains("full") && chosen.contains("ring_kv") && chosen.contains("ulysses"));
}

TEST(Scheduler, TheRingOverAPrefixIsByTheCostModel) {
  SchedulerOptions options = LargeOptions(4);
  options.speed.product_flops = options.speed.attention_flops = 1e14;
  EXPECT_EQ(FastestOverPrefix(LargeOptions(1), 1000, 2000), "full");
  EXPECT_EQ(FastestOverPrefix(options, 1000, 100000), "ring_kv");
  // With so few tokens, computing cannot hide the transfer of keys, so queries travel.
  EXPECT_NE(FastestOverPrefix(options, 500000, 500600), "ring_kv");
}

TEST(Scheduler, AutoIsExactWhereNothingCanSelect) {
  SchedulerOptions options = TestOptions();
  options.has_retaining_heads = false;
  Request r = MakeRequest(1, 100, 3, 1);
  ASSERT_TRUE(ResolveRequest(options, r).ok());
  EXPECT_EQ(r.spec.strategy, "apb");  // the query selects
  r = MakeRequest(1, 100, 3, 1);
  r.spec.embedded_query.clear();
  ASSERT_TRUE(ResolveRequest(options, r).ok());
  EXPECT_TRUE(context_parallel::FindStrategy(r.spec.strategy)->exact) << r.spec.strategy;
}

}  // namespace
}  // namespace apb::schedule
