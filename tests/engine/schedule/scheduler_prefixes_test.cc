// Goal: a prompt that begins like an earlier one starts from its KV, if that is worth it, with a
// strategy that can; a cached prefix never blocks a request. Method: single scenarios on a false
// clock; the places of KV are compared with a list.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/context_parallel/strategies.h"
#include "engine/schedule/scheduler.h"
#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

// The KV of the first sequence may still be on the ranks under that id.
TEST(Scheduler, AnIdIsNotUsedAgainWhileItsPrefixIsKept) {
  SchedulerOptions options = TestOptions();
  options.prefix_cache = true;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  scheduler.Submit(MakeRequest(1, 80, 3, 2), run.now());
  while (!scheduler.idle()) run.Step();
  EXPECT_GT(scheduler.ledger().cached(0), 0);
  run.ends.clear();
  scheduler.Submit(MakeRequest(1, 80, 3, 2), run.now());
  run.Step();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kRejected);
  scheduler.ForgetPrefixes();
  run.Step();
  run.ends.clear();
  scheduler.Submit(MakeRequest(1, 80, 3, 2), run.now());
  while (!scheduler.idle()) run.Step();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kLength);
}

// A prompt of `length` tokens that begins like all others.
Request Alike(uint64_t id, int64_t length, int64_t query) {
  Request r = MakeRequest(id, length - query, query, 1);
  std::iota(r.spec.tokens.begin(), r.spec.tokens.end(), 1);
  return r;
}

TEST(Scheduler, ALongRestBehindAPrefixIsPrefilled) {
  SchedulerOptions options = TestOptions();
  options.prefix_cache = true;
  options.max_model_len = 1000;
  options.blocks_per_rank = 1000;
  options.ring_from = 21;
  options.model = {.query_heads = 8};
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  const auto submit = [&](Request r) {
    scheduler.Submit(r, run.now());
    const StepPlan plan = run.Step();
    EXPECT_EQ(plan.admissions.size(), 1u);
    while (!scheduler.idle()) run.Step();
    return plan;
  };
  Request first = Alike(1, 90, 2);
  first.spec.strategy = "apb";
  submit(first);
  // Turns that add 20 and 88 tokens behind the cached ones, the last token not counted.
  Request next = Alike(2, 111, 2);
  next.spec.strategy = "apb";
  StepPlan plan = submit(next);
  EXPECT_TRUE(plan.prefill.empty());
  EXPECT_EQ(plan.spans[0].position, 90);
  next = Alike(3, 200, 2);
  next.spec.strategy = "apb";
  plan = submit(next);
  ASSERT_EQ(plan.prefill.size(), 1u);
  EXPECT_EQ(plan.admissions[0].cached_tokens, 111);
  EXPECT_EQ(plan.admissions[0].prefix_strategy, "ring_kv");
  EXPECT_EQ(plan.admissions[0].prefill_end, 199);
  // An approximate prefill of the whole prompt is less work than an exact prefill of most of it. An
  // exact request does not use approximate KV.
  next = Alike(4, 900, 2);
  next.spec.strategy = "apb";
  plan = submit(next);
  EXPECT_EQ(plan.admissions[0].cached_tokens, 0);
  next = Alike(5, 300, 2);
  next.spec.strategy = "token_ring";
  EXPECT_EQ(submit(next).admissions[0].cached_tokens, 0);
  // A ring that the request names is used; a strategy that cannot start from a prefix is replaced.
  uint64_t id = 6;
  for (const char* strategy : {"ring_q", "token_ring", "ulysses"}) {
    next = Alike(id, 50 + 50 * static_cast<int64_t>(id), 2);
    ++id;
    next.spec.strategy = strategy;
    plan = submit(next);
    EXPECT_GE(plan.admissions[0].cached_tokens, 300) << strategy;
    EXPECT_EQ(plan.admissions[0].prefix_strategy,
              std::string_view(strategy) == "ulysses" ? "ring_kv" : strategy);
  }
  scheduler.ForgetPrefixes();
  run.RunUntilIdle();
}

// A prefix that is much longer than its match may hold the blocks that the prompt needs.
TEST(Scheduler, APrefixDoesNotKeepItsUserOut) {
  SchedulerOptions options = TestOptions();
  options.prefix_cache = true;
  options.max_model_len = 450;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  for (uint64_t id = 1; id <= 2; ++id) {
    Request r = Alike(id, 400, 2);
    for (size_t i = 150; i < 400; ++i) r.spec.tokens[i] = static_cast<int32_t>(1000 * id + i);
    r.spec.strategy = "ring_kv";
    scheduler.Submit(r, run.now());
    for (int i = 0; i < 1000 && !scheduler.idle(); ++i) run.Step();
    EXPECT_EQ(run.ends.at(SequenceId{id}).reason, EndReason::kLength);
    EXPECT_EQ(run.ends.at(SequenceId{id}).cached_tokens, 0);
  }
  scheduler.ForgetPrefixes();
  run.RunUntilIdle();
}

// Every position is on one rank, in whatever order prefills and batches of tokens follow each
// other.
TEST(KvLayout, PlansAndRowsOneBehindTheOther) {
  std::mt19937 rng(5);
  for (int trial = 0; trial < 200; ++trial) {
    const int ranks = 1 + static_cast<int>(rng() % 4);
    KvLayout layout(ranks);
    std::vector<int> keeper;
    for (int piece = 0; piece < 4; ++piece) {
      for (int64_t rows = rng() % 9; rows > 0; --rows)
        keeper.push_back(static_cast<int>(keeper.size() % ranks));
      const int64_t begin = static_cast<int64_t>(keeper.size()), end = begin + rng() % 40;
      auto plan = context_parallel::MakeShardPlan(
          rng() % 4 == 0 ? "full" : "ring_kv",
          {.document_length = end, .cached_length = begin, .query_length = 1}, {.hosts = ranks});
      ASSERT_TRUE(plan.ok());
      keeper.resize(end);
      for (size_t h = 0; h < plan->hosts.size(); ++h) {
        for (const context_parallel::TokenSpan& span : plan->hosts[h].local)
          std::fill(keeper.begin() + span.begin, keeper.begin() + span.end, static_cast<int>(h));
      }
      layout.Append(*std::move(plan), end);
      if (rng() % 3 == 0) {  // the next sequence begins like this one
        keeper.resize(rng() % (keeper.size() + 1));
        layout = layout.Prefix(static_cast<int64_t>(keeper.size()));
      }
    }
    for (int i = 0; i < 5; ++i) keeper.push_back(static_cast<int>(keeper.size() % ranks));
    for (int r = 0; r < ranks; ++r) {
      for (size_t length = 0; length <= keeper.size(); ++length) {
        ASSERT_EQ(layout.Count(r, static_cast<int64_t>(length)),
                  std::count(keeper.begin(), keeper.begin() + length, r));
      }
    }
  }
}

}  // namespace
}  // namespace apb::schedule
