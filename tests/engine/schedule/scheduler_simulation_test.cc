// Goal: every request ends exactly once and no block is lost, in whatever order requests, contexts
// and cancellations come. Method: a seeded simulation of 100,000 of them on a false clock, with an
// executor that checks every plan against its own account of sequences.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "engine/schedule/scheduler.h"
#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

class SchedulerSimulation : public testing::TestWithParam<bool> {};

TEST_P(SchedulerSimulation, HundredThousandRequestsWithCancels) {
  SchedulerOptions options = TestOptions();
  options.prefix_cache = GetParam();  // all prompts are the same token, so all share prefixes
  options.ring_from = 16;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  std::mt19937 rng(9);
  uint64_t next = 1, questions = 0;
  const uint64_t total = 100000;
  std::vector<Request> contexts;  // three at most, being created or complete
  while (next <= total || !scheduler.idle()) {
    const int rush = next / 10000 % 2 == 0 ? 12 : 2;  // fills the queue, then lets it drain
    for (int i = static_cast<int>(rng() % rush); i > 0 && next <= total; --i) {
      scheduler.Submit(
          MakeRequest(next++, rng() % 3 == 0 ? rng() % 120 : rng() % 20, 1 + rng() % 20, rng() % 6),
          run.now());
    }
    if (rng() % 3 == 0 && next > 1)
      scheduler.Cancel(SequenceId{next - 1 - rng() % std::min<uint64_t>(next - 1, 30)}, run.now());
    if (contexts.size() == 3 && rng() % 50 == 0) {
      scheduler.Cancel(contexts.front().spec.id, run.now());
      contexts.erase(contexts.begin());
    }
    if (contexts.size() < 3 && next <= total) {
      contexts.push_back(MakeContext(next++, 1 + rng() % 100));
      scheduler.Submit(contexts.back(), run.now());
    }
    if (!contexts.empty() && next <= total && rng() % 2 == 0) {
      const Request& context = contexts[rng() % contexts.size()];
      Request question = MakeQuestion(next++, context, 1 + rng() % 20, rng() % 6);
      // In some questions, the context's last tokens differ.
      const size_t same =
          context.spec.tokens.size() - std::min<size_t>(rng() % 4, context.spec.tokens.size());
      std::fill(question.spec.tokens.begin() + static_cast<std::ptrdiff_t>(same),
                question.spec.tokens.end(), 40);
      scheduler.Submit(std::move(question), run.now());
    }
    run.Step();
    for (int r = 0; r < 2; ++r) {
      ASSERT_LE(scheduler.ledger().kept(r), scheduler.ledger().cached(r));
      ASSERT_GE(scheduler.ledger().used(r), 0);
      ASSERT_GE(scheduler.ledger().cached(r), 0);
      ASSERT_LE(scheduler.ledger().used(r) + scheduler.ledger().cached(r), 64);
    }
    if (HasFailure()) return;
  }
  for (const Request& context : contexts) scheduler.Cancel(context.spec.id, run.now());
  scheduler.ForgetPrefixes();
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.size(), total);
  for (const auto& [id, end] : run.ends) questions += end.cached_tokens > 0;
  EXPECT_GT(questions, 1000u);
  EXPECT_GT(run.forks, 1000);
  for (int r = 0; r < 2; ++r) EXPECT_EQ(scheduler.ledger().cached(r), 0);
}
INSTANTIATE_TEST_SUITE_P(PrefixCache, SchedulerSimulation, testing::Bool());

}  // namespace
}  // namespace apb::schedule
