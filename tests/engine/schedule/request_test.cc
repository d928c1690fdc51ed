// Goal: requests that can never run, or would harm others, are refused by name; all others get
// their hosts, shards and limits. Method: requests resolved alone, and through a scheduler beside
// good ones.
#include "engine/schedule/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/context_parallel/cost.h"
#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

// The request decides, else the group's default. Only apb can balance its shards, and KV of other
// shards is not reused.
TEST(Scheduler, BalancedShards) {
  SchedulerOptions options = TestOptions();
  options.model = {
      .layers = 4, .hidden_size = 64, .mlp_size = 64, .query_heads = 4, .head_dim = 16};
  const int64_t cost = context_parallel::RowCostInPairs(options.model, options.speed);
  for (const bool by_default : {false, true}) {
    options.balanced = by_default;
    for (const std::optional<bool> wanted : {std::optional<bool>(), {true}, {false}}) {
      for (const char* strategy : {"apb", "auto", "star", "full"}) {
        Request r = MakeRequest(1, 100, 3, 1);
        r.spec.strategy = strategy;
        r.balanced = wanted;
        const auto layout = ResolveRequest(options, r);
        ASSERT_TRUE(layout.ok()) << layout.status();
        const bool balanced = wanted.value_or(by_default) && r.spec.strategy == "apb";
        EXPECT_EQ(r.spec.strategy_options.row_cost_pairs, balanced ? cost : 0);
        if (strategy != std::string_view("full")) {
          EXPECT_EQ(layout->Count(0, 100) > 50, balanced) << strategy;
        }
      }
    }
  }
  // Without room for the longer first shard, the shards have equal length.
  options.balanced = true;
  options.blocks_per_rank = 28;  // of 4 tokens; 100 + 3 + 121 tokens are all that fit
  options.max_model_len = 224;
  for (const int32_t max_tokens : {1, 121}) {
    Request r = MakeRequest(1, 100, 3, max_tokens);
    r.spec.strategy = "apb";
    ASSERT_TRUE(ResolveRequest(options, r).ok());
    EXPECT_EQ(r.spec.strategy_options.row_cost_pairs, max_tokens == 1 ? cost : 0);
    EXPECT_EQ(r.spec.sampling.max_tokens, max_tokens);
  }
  options = TestOptions();
  options.prefix_cache = true;
  options.max_model_len = 400;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  int64_t cached[3];
  for (const uint64_t id : {0, 1, 2}) {  // balanced, equal, balanced
    Request r = MakeRequest(id + 1, 100, 30, 1);
    r.spec.strategy = "apb";
    r.balanced = id != 1;
    scheduler.Submit(r, run.now());
    for (int i = 0; i < 1000 && !scheduler.idle(); ++i) run.Step();
    cached[id] = run.ends.at(SequenceId{id + 1}).cached_tokens;
  }
  EXPECT_EQ(cached[0], 0);
  EXPECT_EQ(cached[1], 0);
  EXPECT_GT(cached[2], 100);
}

TEST(Scheduler, PromptsWhosePrefillTakesTooMuchMemoryAreRefused) {
  SchedulerOptions options = TestOptions();
  options.model = {.layers = 4,
                   .hidden_size = 4096,
                   .mlp_size = 14336,
                   .query_heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128};
  const auto resolve = [&](const char* strategy) {
    Request r = MakeRequest(1, 150, 3, 1);
    r.spec.strategy = strategy;
    return ResolveRequest(options, r).status();
  };
  EXPECT_TRUE(resolve("full").ok());  // unlimited
  // A token takes 8 KiB for hidden states, 20 KiB for attention, and 64 KiB for norms and MLP.
  options.prefill_bytes = 12 << 20;
  const absl::Status refused = resolve("full");
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("takes 13 MiB"));
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("12 MiB are free"));
  EXPECT_TRUE(resolve("ring_kv").ok());  // half of the tokens on each rank
  EXPECT_TRUE(resolve("apb").ok());
}

TEST(Scheduler, ExactStrategiesHaveOneHostOnEachRank) {
  SchedulerOptions options = TestOptions();
  for (auto [strategy, hosts, query_heads, fits] :
       {std::tuple<const char*, int, int, bool>{"ring_kv", 0, 4, true},
        {"ring_q", 2, 4, true},
        {"token_ring", 4, 4, false},
        {"ulysses", 0, 4, true},
        {"ulysses", 0, 3, false}}) {
    options.model.query_heads = query_heads;
    Scheduler scheduler(options);
    FakeExecutor run(scheduler);
    Request r = MakeRequest(1, 50, 3, 1);
    r.spec.strategy = strategy;
    r.spec.strategy_options.hosts = hosts;
    r.exact = true;
    scheduler.Submit(r, run.now());
    run.Step();  // takes the events of a refused request, too
    run.RunUntilIdle();
    const EndEvent& end = run.ends.at(SequenceId{1});
    EXPECT_EQ(end.reason, fits ? EndReason::kLength : EndReason::kRejected) << strategy;
    EXPECT_EQ(end.status.ok(), fits) << strategy << end.status;
  }
}

TEST(Scheduler, RejectsWhatCannotRun) {
  SchedulerOptions options = TestOptions();
  options.max_waiting = 2;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  Request bad_hosts = MakeRequest(1, 100, 3, 1);
  bad_hosts.spec.strategy_options.hosts = 3;
  bad_hosts.spec.strategy = "apb";
  Request unknown = MakeRequest(2, 100, 3, 1);
  unknown.spec.strategy = "magic";
  Request contradiction = MakeRequest(3, 100, 3, 1);
  contradiction.spec.strategy = "apb";
  contradiction.exact = true;
  Request no_query = MakeRequest(4, 10, 0, 1);
  for (const Request& r : {bad_hosts, unknown, contradiction, no_query, MakeRequest(5, 300, 3, 1)})
    scheduler.Submit(r, run.now());
  for (uint64_t id = 6; id < 9; ++id) scheduler.Submit(MakeRequest(id, 40, 3, 1), run.now());
  run.RunUntilIdle();
  for (uint64_t id = 1; id <= 5; ++id) {
    EXPECT_EQ(run.ends.at(SequenceId{id}).reason, EndReason::kRejected) << id;
    EXPECT_EQ(run.ends.at(SequenceId{id}).status.code(), absl::StatusCode::kInvalidArgument) << id;
  }
  EXPECT_EQ(run.ends.at(SequenceId{8}).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(run.ends.at(SequenceId{7}).reason, EndReason::kLength);
}

// In the executor, these would be errors that end the group for everyone.
TEST(Scheduler, RejectsWhatWouldHarmOthers) {
  SchedulerOptions options = TestOptions();
  options.vocab_size = 50;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  std::vector<Request> bad(7, MakeRequest(0, 10, 3, 1));
  bad[0].spec.tokens[4] = 50;
  bad[1].spec.tokens[12] = -1;
  bad[2].spec.embedded_query = {3, 1 << 30};
  bad[3].spec.sampling.temperature = NAN;
  bad[4].spec.sampling.presence_penalty = INFINITY;
  bad[5].spec.sampling.repetition_penalty = 0;
  bad[6].spec.sampling.max_tokens = -5;
  for (size_t i = 0; i < bad.size(); ++i) {
    bad[i].spec.id = SequenceId{i + 1};
    scheduler.Submit(bad[i], run.now());
  }
  scheduler.Submit(MakeRequest(100, 10, 3, 1), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{100}).reason, EndReason::kLength);
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(run.ends.at(SequenceId{i + 1}).status.code(), absl::StatusCode::kInvalidArgument)
        << i;
  }
}

}  // namespace
}  // namespace apb::schedule
