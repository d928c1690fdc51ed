// Goal: a new strategy is one folder and one row. Method: the toy strategy, which only row.cc
// names, goes through the contract, with ranks as threads, and through the scheduler.
#include <gtest/gtest.h>

#include <thread>

#include "engine/comm/local_communicator.h"
#include "engine/context_parallel/strategies.h"
#include "engine/schedule/request.h"
#include "tests/engine/context_parallel/contract.h"

namespace apb::context_parallel {
namespace {

void OnRanks(int ranks, void (*check)(const TestRank&)) {
  auto group = comm::CreateLocalGroup(ranks, absl::Minutes(2));
  std::vector<std::thread> threads;
  for (auto& rank : group) threads.emplace_back([&] { check(*rank); });
  for (std::thread& thread : threads) thread.join();
}

class ToyContract : public testing::TestWithParam<int> {};

TEST_P(ToyContract, ExactStrategiesAreFull) { OnRanks(GetParam(), CheckExactStrategiesAreFull); }
TEST_P(ToyContract, CostModelCountsWhatIsSent) {
  OnRanks(GetParam(), CheckCostModelCountsWhatIsSent);
}
TEST_P(ToyContract, KvIsWholeAndReleased) { OnRanks(GetParam(), CheckKvIsWholeAndReleased); }
INSTANTIATE_TEST_SUITE_P(Ranks, ToyContract, testing::Values(1, 2, 3, 4));

schedule::SchedulerOptions Group() {
  return {.ranks = 4,
          .default_hosts = 4,
          .blocks_per_rank = 1 << 20,
          .layers = 32,
          .max_model_len = 1 << 20,
          .model = {.layers = 32,
                    .hidden_size = 4096,
                    .mlp_size = 14336,
                    .query_heads = 30,  // not divisible by 4 ranks, so ulysses refuses the model
                    .kv_heads = 30,
                    .head_dim = 128}};
}

schedule::Request Document(std::string strategy, int64_t tokens) {
  schedule::Request request;
  request.spec.strategy = std::move(strategy);
  request.spec.tokens.assign(tokens + 3, 1);
  request.spec.query_begin = tokens;
  request.spec.strategy_options.hosts = 0;
  request.spec.sampling.max_tokens = 1;
  request.exact = true;
  return request;
}

TEST(ToyStrategy, IsScheduledByName) {
  schedule::Request request = Document("gather_kv", 1000);
  const auto layout = schedule::ResolveRequest(Group(), request);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(request.spec.strategy_options.hosts, 4);
  EXPECT_EQ(layout->Count(3, 1000), 250);
  // The row's rules are applied: one host on each rank, and no cached prefix.
  request.spec.strategy_options.hosts = 8;
  EXPECT_EQ(schedule::ResolveRequest(Group(), request).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(
      MakeShardPlan("gather_kv", {.document_length = 8, .cached_length = 4}, {.hosts = 4}).ok());
}

// After all others: it sends as much as ring_kv, and no compute hides that.
TEST(ToyStrategy, AutoTriesItLast) {
  EXPECT_EQ(AutoCandidates(/*exact=*/true).back()->name, "gather_kv");
  schedule::Request request = Document("auto", 100000);
  ASSERT_TRUE(schedule::ResolveRequest(Group(), request).ok());
  EXPECT_EQ(request.spec.strategy, FirstExact(HostsRule::kOneOnEachRank).name);
}

}  // namespace
}  // namespace apb::context_parallel
