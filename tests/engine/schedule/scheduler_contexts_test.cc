// Goal: contexts stay until they are cancelled, and their blocks are free then; no request waits
// for ever beside them; no answer breaks off with an error. Method: single scenarios, with and
// without a prefix cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/schedule/scheduler.h"
#include "tests/engine/schedule/fake_executor.h"

namespace apb::schedule {
namespace {

class SchedulerContexts : public testing::TestWithParam<bool> {
 protected:
  SchedulerContexts() : scheduler_(WithCache()), run_(scheduler_) {}
  static SchedulerOptions WithCache() {
    SchedulerOptions options = TestOptions();
    options.prefix_cache = GetParam();
    return options;
  }
  void Submit(const Request& request) { scheduler_.Submit(request, run_.now()); }
  void Run() {
    for (int i = 0; i < 100000 && !scheduler_.idle(); ++i) run_.Step();
    run_.Step();  // takes the events of refused requests
    EXPECT_TRUE(scheduler_.idle());
  }
  const EndEvent& End(uint64_t id) { return run_.ends.at(SequenceId{id}); }

  Scheduler scheduler_;
  FakeExecutor run_;
};
INSTANTIATE_TEST_SUITE_P(PrefixCache, SchedulerContexts, testing::Bool());

TEST_P(SchedulerContexts, StayUntilTheyAreCancelled) {
  for (const int64_t length : {7, 120}) {  // 7 is too short for the prefix cache
    const uint64_t id = length * 100;
    const Request context = MakeContext(id, length, 7);
    Submit(context);
    Run();
    EXPECT_EQ(End(id).reason, EndReason::kLength);
    EXPECT_GT(scheduler_.ledger().kept(0) + scheduler_.ledger().kept(1), 0);
    EXPECT_EQ(scheduler_.ledger().used(0), 0);
    // These requests need all other blocks.
    for (uint64_t i = 1; i <= 20; ++i) Submit(MakeRequest(id + i, 100, 20, 20));
    Submit(MakeQuestion(id + 30, context, 3, 4));
    Run();
    EXPECT_EQ(End(id + 30).reason, EndReason::kLength);
    EXPECT_EQ(End(id + 30).cached_tokens, length);
    EXPECT_EQ(End(id + 30).strategy, End(id).strategy);
    scheduler_.Cancel(SequenceId{id}, run_.now());
    EXPECT_EQ(scheduler_.ledger().kept(0), 0);
    Submit(MakeQuestion(id + 31, context, 3, 4));
    Run();
    EXPECT_EQ(End(id + 31).status.code(), absl::StatusCode::kNotFound);
    scheduler_.ForgetPrefixes();
    run_.Step();
    EXPECT_EQ(run_.live(), 0u);
  }
}

TEST_P(SchedulerContexts, ServeOnlyTheirNamesWithoutAPrefixCache) {
  const Request context = MakeContext(1, 120, 7);
  Submit(context);
  Run();
  Request stranger = MakeQuestion(2, context, 10, 1);
  stranger.context.reset();
  Submit(stranger);
  Run();
  EXPECT_EQ(End(2).cached_tokens, GetParam() ? 120 : 0);
}

TEST_P(SchedulerContexts, FollowUpTurnsGoOnBehindThem) {
  const Request context = MakeContext(1, 90, 7);
  Submit(context);
  Run();
  for (uint64_t turn = 0; turn < 3; ++turn) {
    Submit(MakeQuestion(2 + turn, context, 10 + 10 * static_cast<int64_t>(turn), 1));
    Run();
    EXPECT_EQ(End(2 + turn).cached_tokens,
              GetParam() && turn > 0 ? 90 + 10 * static_cast<int64_t>(turn) : 90);
  }
  scheduler_.Cancel(SequenceId{1}, run_.now());
  scheduler_.ForgetPrefixes();
  run_.Step();
  EXPECT_EQ(run_.live(), 0u);
}

TEST_P(SchedulerContexts, ThatAreCancelledStayForWhomHasThem) {
  const Request context = MakeContext(1, 120, 7);
  Submit(context);
  Run();
  Submit(MakeQuestion(2, context, 5, 3));  // waits
  scheduler_.Cancel(SequenceId{1}, run_.now());
  for (uint64_t id = 3; id < 8; ++id) Submit(MakeRequest(id, 150, 3, 3));  // would evict it
  Run();
  EXPECT_EQ(End(2).cached_tokens, 120);
  scheduler_.ForgetPrefixes();
  run_.Step();
  EXPECT_EQ(run_.live(), 0u);
  EXPECT_EQ(scheduler_.ledger().cached(0), 0);
}

// This also covers a creation that ends while the server takes it back.
TEST_P(SchedulerContexts, AreNotKeptWhenCancelledBeforeTheyAreDone) {
  Submit(MakeContext(1, 120));
  run_.Step();
  scheduler_.Cancel(SequenceId{1}, run_.now());
  Run();
  EXPECT_EQ(End(1).reason, EndReason::kCancelled);
  EXPECT_EQ(scheduler_.ledger().kept(0), 0);
}

TEST_P(SchedulerContexts, RefuseWhatCanNeverFitBesideThem) {
  const Request context = MakeContext(1, 180, 7);
  for (const Request& r : {context, MakeContext(2, 180, 8)}) Submit(r);  // 46 of 64 blocks
  Run();
  Submit(MakeRequest(3, 8, 2, 30));
  while (run_.tokens[SequenceId{3}].empty()) run_.Step();
  Submit(MakeRequest(4, 150, 3, 1));
  Submit(MakeContext(5, 150));
  Submit(MakeRequest(6, 60, 3, 2));  // fits, and does not wait for them
  run_.Step();
  run_.Step();
  for (const uint64_t id : {4, 5}) {
    EXPECT_EQ(End(id).status.code(), absl::StatusCode::kResourceExhausted) << End(id).status;
    EXPECT_NE(End(id).status.message().find("contexts hold 184 of the 256"), std::string::npos)
        << End(id).status;
  }
  Submit(MakeQuestion(7, context, 3, 2));
  Run();
  for (const uint64_t id : {3, 6, 7}) EXPECT_EQ(End(id).reason, EndReason::kLength);
  scheduler_.Cancel(SequenceId{2}, run_.now());
  Submit(MakeRequest(8, 150, 3, 1));
  Run();
  EXPECT_EQ(End(8).reason, EndReason::kLength);
}

// A request may wait for its context after the context was cancelled. It must not stop the request
// ahead of it for ever, since it does not run either.
TEST_P(SchedulerContexts, NobodyWaitsForWhatCannotCome) {
  const Request context = MakeContext(1, 190, 7);
  Submit(context);
  Submit(MakeContext(2, 190, 8));
  Run();
  Submit(MakeRequest(3, 180, 3, 1));
  Submit(MakeQuestion(4, context, 3, 1));
  scheduler_.Cancel(SequenceId{1}, run_.now());
  Run();
  EXPECT_EQ(End(3).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(End(4).reason, EndReason::kLength);
}

// New contexts bring the end of the cache nearer: the answer has no error in the middle, and no
// token twice.
TEST_P(SchedulerContexts, EndAnAnswerThatRunsIntoThem) {
  Submit(MakeRequest(1, 8, 2, 180));
  while (run_.tokens[SequenceId{1}].empty()) run_.Step();
  for (uint64_t id = 2; id < 5; ++id) Submit(MakeContext(id, 150, static_cast<int32_t>(id)));
  Run();
  EXPECT_EQ(End(1).reason, EndReason::kLength) << End(1).status;
  const std::vector<int32_t>& tokens = run_.tokens[SequenceId{1}];
  EXPECT_LT(tokens.size(), 60u);
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], 9 + static_cast<int32_t>(i));
}

// Tokens that follow a context may change its last tokens. Its KV serves up to there, even if it
// was computed approximately, and later turns continue from the KV that exists then.
TEST_P(SchedulerContexts, AreUsedUpToTheFirstTokenThatDiffers) {
  for (const char* strategy : {"ring_kv", "apb"}) {
    Request context = MakeContext(strategy == std::string("apb") ? 100 : 200, 90, 7);
    const uint64_t id = static_cast<uint64_t>(context.spec.id);
    context.spec.strategy = strategy;
    Submit(context);
    Run();
    for (const int64_t same : {89, 88, 70, 1, 0}) {
      const uint64_t first = id + 1 + 2 * static_cast<uint64_t>(same % 40);
      Request question = MakeQuestion(first, context, 10, 1);
      std::fill(question.spec.tokens.begin() + same, question.spec.tokens.end(),
                static_cast<int32_t>(50 + same));
      Submit(question);
      Run();
      EXPECT_EQ(End(first).reason, EndReason::kLength) << End(first).status;
      EXPECT_EQ(End(first).cached_tokens, same);
      EXPECT_EQ(End(first).strategy, strategy);
      Request next = question;
      next.spec.id = SequenceId{first + 1};
      next.spec.tokens.insert(next.spec.tokens.end(), 5, 41);
      Submit(next);
      Run();
      // A sequence that has started anew is not found behind the context.
      EXPECT_EQ(End(first + 1).cached_tokens, GetParam() && same > 0 ? 100 : same) << same;
    }
    // A prompt that ends within the context, or where it ends.
    for (const int64_t length : {60, 90}) {
      Request part = MakeQuestion(id + 90 + static_cast<uint64_t>(length % 7), context, 0, 1);
      part.spec.tokens.resize(length);
      part.spec.query_begin = std::min<int64_t>(part.spec.query_begin, length - 1);
      Submit(part);
      Run();
      EXPECT_EQ(run_.ends.at(part.spec.id).cached_tokens, length - 1);
    }
    scheduler_.Cancel(SequenceId{id}, run_.now());
    scheduler_.ForgetPrefixes();
    run_.Step();
    EXPECT_EQ(run_.live(), 0u);
    EXPECT_EQ(scheduler_.ledger().cached(0), 0);
  }
}

TEST_P(SchedulerContexts, WithAnAnswerAreRefused) {
  Request talks = MakeContext(4, 20);
  talks.spec.sampling.max_tokens = 1;
  Submit(talks);
  Run();
  EXPECT_EQ(End(4).status.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace apb::schedule
