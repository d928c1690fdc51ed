// Goal: the scheduler keeps its promises for single requests: how they end, order, fairness,
// cancellation within one step, preemption without repeated tokens. Method: single scenarios on a
// false clock with an executor that checks every plan.
#include "engine/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

TEST(Scheduler, OneRequestFromStartToEnd) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 40, 5, 3), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.tokens[SequenceId{1}],
            (std::vector<int32_t>{44, 45, 46}));  // the positions that they were drawn at
  const EndEvent& end = run.ends.at(SequenceId{1});
  EXPECT_EQ(end.reason, EndReason::kLength);
  EXPECT_EQ(end.strategy, "apb");  // 40 >= full_below
  EXPECT_GT(end.prefill_seconds, 0);
}

TEST(Scheduler, SlicesOfAPrefillCountEveryTokenOnce) {
  SchedulerOptions options = TestOptions();
  options.layers = 7;
  options.slice_seconds_idle = options.slice_seconds_busy = 1e-9;  // slices of one layer
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  Request request = MakeRequest(1, 40, 5, 1);
  request.spec.strategy = "full";
  scheduler.Submit(request, run.now());
  run.RunUntilIdle();
  EXPECT_EQ(scheduler.prompt_tokens_computed(), 45);
}

TEST(Scheduler, AFailedDrawEndsItsSequenceOnly) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  run.undrawable = SequenceId{1};
  for (uint64_t id = 1; id < 3; ++id) scheduler.Submit(MakeRequest(id, 20, 3, 4), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kFailed);
  EXPECT_EQ(run.ends.at(SequenceId{1}).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(run.ends.at(SequenceId{2}).reason, EndReason::kLength);
  EXPECT_EQ(run.tokens[SequenceId{2}].size(), 4u);
}

TEST(Scheduler, MaxTokensZeroComputesThePromptOnly) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 40, 5, 0), run.now());
  run.RunUntilIdle();
  EXPECT_TRUE(run.tokens[SequenceId{1}].empty());
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kLength);
}

TEST(Scheduler, StopTokenEnds) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  Request r = MakeRequest(1, 10, 2, 50);
  r.spec.sampling.stop_tokens = {14};  // the fake draws the position as the token
  scheduler.Submit(r, run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kStopToken);
  EXPECT_EQ(run.tokens[SequenceId{1}].back(), 14);
}

TEST(Scheduler, StopTokenEndsAlsoAsTheFirstToken) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  Request r = MakeRequest(1, 10, 2, 50);
  r.spec.sampling.stop_tokens = {11};
  scheduler.Submit(r, run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kStopToken);
  EXPECT_EQ(run.tokens[SequenceId{1}], std::vector<int32_t>{11});
}

TEST(Scheduler, CancelFreesWithinOneStep) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 100, 5, 50), run.now());
  run.Step();  // runs a part of the prefill
  EXPECT_GT(scheduler.ledger().used(0), 0);
  scheduler.Cancel(SequenceId{1}, run.now());
  scheduler.Cancel(SequenceId{1}, run.now());
  EXPECT_EQ(scheduler.ledger().used(0), 0);
  EXPECT_EQ(run.Step().releases, std::vector<SequenceId>{SequenceId{1}});
  EXPECT_EQ(run.live(), 0u);
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kCancelled);
}

TEST(Scheduler, DecodingGoesOnBesideALongPrefill) {
  Scheduler scheduler(TestOptions());
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 8, 2, 60), run.now());
  while (run.tokens[SequenceId{1}].empty()) run.Step();
  scheduler.Submit(MakeRequest(2, 150, 2, 1), run.now());
  for (int slices = 0, i = 0; i < 2; ++i) {
    const StepPlan plan = run.Step();
    slices += static_cast<int>(plan.prefill.size());
    ASSERT_EQ(plan.spans.size(), 1u);
    ASSERT_GT(slices, 0);
  }
  run.RunUntilIdle();
}

TEST(Scheduler, ShortPrefillOvertakesALongOne) {
  SchedulerOptions options = TestOptions();
  options.layers = 100;
  options.max_model_len = 2000;
  options.blocks_per_rank = 1000;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 1500, 2, 1), run.now());
  run.Step();
  scheduler.Submit(MakeRequest(2, 50, 2, 1), run.now());
  EXPECT_EQ(run.Step().prefill[0].ids, std::vector<SequenceId>{SequenceId{2}});
  run.RunUntilIdle();
}

TEST(Scheduler, PreemptionRepeatsNoToken) {
  SchedulerOptions options = TestOptions();
  options.blocks_per_rank = 14;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Submit(MakeRequest(id, 12, 3, 60), run.now());
  run.RunUntilIdle();
  EXPECT_GT(scheduler.preemptions(), 0);
  for (uint64_t id = 1; id <= 3; ++id) {
    const std::vector<int32_t>& tokens = run.tokens[SequenceId{id}];
    ASSERT_EQ(tokens.size(), 60u);
    // The fake draws the position as the token.
    for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], 14 + static_cast<int32_t>(i));
  }
}

// Documents of one exact strategy that are submitted together share a prefill, up to a number of
// tokens.
TEST(Scheduler, ShortDocumentsRunTogether) {
  SchedulerOptions options = TestOptions();
  options.blocks_per_rank = 1000;
  options.prefill_batch_tokens = 60;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  const char* strategies[] = {"ring_kv", "apb", "ring_kv", "ring_kv", "ring_q", "full", "full"};
  for (uint64_t id = 1; id <= 7; ++id) {
    Request r = MakeRequest(id, 25, 3, 1);
    r.spec.strategy = strategies[id - 1];
    scheduler.Submit(r, run.now());
  }
  std::set<std::vector<SequenceId>> batches;
  run.Step();
  scheduler.Cancel(SequenceId{6}, run.now());  // the other sequence of its batch goes on
  while (!scheduler.idle()) {
    for (const PrefillSlice& slice : run.Step().prefill) batches.insert(slice.ids);
  }
  const auto ids = [](std::initializer_list<uint64_t> numbers) {
    std::vector<SequenceId> all;
    for (const uint64_t id : numbers) all.push_back(SequenceId{id});
    return all;
  };
  EXPECT_EQ(batches, (std::set<std::vector<SequenceId>>{ids({1, 3}), ids({2}), ids({4}), ids({5}),
                                                        ids({7})}));
  EXPECT_EQ(run.ends.size(), 7u);
}

}  // namespace
}  // namespace apb::schedule
