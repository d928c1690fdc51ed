// Goal: a group of ranks executes plans as the scheduler means them: it gives the answers of one
// rank, frees blocks within one step of a cancellation, and loses none over 10,000 requests.
// Method: scheduler and executors as in apb-worker (executor_group.h), with a tiny model.
#include "engine/executor/step_executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <string_view>

#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/engine/executor/executor_group.h"

namespace apb::executor {
namespace {

using context_parallel::TinyModel;
using schedule::EndReason;
using schedule::Request;
using schedule::SequenceId;
using schedule::StepPlan;

TEST(StepExecutor, AnswersAsOneRank) {
  constexpr int64_t kBlocks = 200;
  const int ranks = comm::TestRuntime().size();
  const auto submit = [ranks](Group& group) {
    uint64_t id = 1;
    for (const int64_t document : {0, 1, 30, 61, 90, 127}) {
      for (const int64_t query : {1, 7, 30}) {
        Request request = MakeRequest(id++, document, query, 6);
        request.balanced = document % 2 == 1;  // matters for apb only
        group.Submit(std::move(request));
      }
    }
    for (const char* strategy : {"ring_kv", "ring_q", "token_ring", "ulysses"}) {
      if (ranks == 3 && std::string_view(strategy) == "ulysses")
        continue;  // 3 does not divide the heads
      Request request = MakeRequest(id++, 77, 5, 6);
      request.spec.strategy = strategy;
      request.spec.strategy_options.hosts = 0;
      request.spec.strategy_options.compressor.clear();
      group.Submit(std::move(request));
    }
    group.RunUntilIdle();
  };
  for (const Division& division :
       {Division{1, false}, Division{1, true}, Division{2, false}, Division{2, true},
        Division{1, false, /*device=*/true}, Division{2, true, /*device=*/true}}) {
    if (ranks % division.tensor != 0 || (division.sliced && ranks / division.tensor == 1)) continue;
    RunGroup(
        kBlocks,
        [&](Group& group) {
          submit(group);
          const comm::Mesh alone = OneRank();
          Group single(alone, 2 * kBlocks);
          submit(single);
          EXPECT_EQ(group.tokens.size(), single.tokens.size());
          for (const auto& [id, tokens] : group.tokens) {
            EXPECT_EQ(tokens, single.tokens[id])
                << static_cast<uint64_t>(id) << " tensor=" << division.tensor
                << " sliced=" << division.sliced << " device=" << division.device;
          }
          for (const auto& [id, end] : group.ends) EXPECT_EQ(end.reason, EndReason::kLength);
        },
        /*prefix_cache=*/false, division);
  }
}

// Prompts of any length and strategy that are submitted together. Some are cancelled between
// layers, and other sequences get their blocks while the rest of the batch goes on.
TEST(StepExecutor, BatchesOfDocumentsAnswerAsOneRank) {
  for (const int tensor : {1, 2}) {
    if (comm::TestRuntime().size() % tensor != 0) continue;
    RunGroup(400,
             [&](Group& group) {
               const comm::Mesh alone = OneRank();
               Group single(alone, 1600);
               const auto submit = [](Group& to, uint64_t id, int64_t document, bool rows_only) {
                 constexpr const char* kExact[] = {"full", "ring_kv", "ring_q", "token_ring"};
                 Request request = MakeRequest(id, document, 24, 5);
                 request.spec.strategy_options.compressor.clear();
                 request.spec.strategy_options.hosts = 0;
                 request.spec.strategy = rows_only ? "full" : kExact[id % 4];
                 if (rows_only) request.spec.query_begin = 0;
                 to.Submit(std::move(request));
               };
               const auto length = [](uint64_t id) {
                 return 1 + static_cast<int64_t>(id * 37 % 50);
               };
               for (uint64_t id = 1; id <= 24; ++id) submit(group, id, length(id), false);
               std::set<SequenceId> cancelled;
               for (int step = 0; step < 8; ++step) {
                 const StepPlan plan = group.Step();
                 if (plan.prefill.empty() || plan.prefill[0].layer_begin > 0) continue;
                 cancelled.insert(plan.prefill[0].ids.back());
                 group.Cancel(static_cast<uint64_t>(plan.prefill[0].ids.back()));
                 submit(group, 100 + step, 0, true);  // its tokens run in the next step
               }
               EXPECT_GE(cancelled.size(), 2u);
               group.RunUntilIdle();
               for (const auto& [id, tokens] : group.tokens) {
                 const uint64_t number = static_cast<uint64_t>(id);
                 submit(single, number, number < 100 ? length(number) : 0, true);
               }
               single.RunUntilIdle();
               EXPECT_GE(group.most_together, 4u);
               EXPECT_EQ(group.tokens.size(), 24u);
               EXPECT_EQ(group.tokens, single.tokens);
             },
             /*prefix_cache=*/false, {.tensor = tensor});
  }
}

TEST(StepExecutor, CancelFreesBlocksWithinOneStep) {
  RunGroup(100, [](Group& group) {
    for (uint64_t id = 1; id <= 3; ++id) {  // apb, star, full
      group.Submit(MakeRequest(id, 100, 5, 50));
      const StepPlan first = group.Step();
      ASSERT_EQ(first.prefill.size(), 1u);
      EXPECT_LT(first.prefill[0].layer_end, TinyModel::Get().config.layers);  // not done yet
      EXPECT_GT(group.used()[0], 0);
      group.Cancel(id);
      group.Step();
      group.ExpectEmpty();
      EXPECT_EQ(group.ends.at(SequenceId{id}).reason, EndReason::kCancelled);
    }
    // Cancels two sequences while they decode.
    group.Submit(MakeRequest(4, 40, 5, 50));
    group.Submit(MakeRequest(5, 0, 9, 50));
    while (group.tokens[SequenceId{4}].empty() || group.tokens[SequenceId{5}].empty()) group.Step();
    group.Cancel(4);
    group.Cancel(5);
    group.Step();
    group.ExpectEmpty();
  });
}

TEST(StepExecutor, AFailedDrawEndsItsSequenceOnly) {
  RunGroup(100, [](Group& group) {
    Request barred = MakeRequest(1, 20, 3, 5);
    barred.spec.sampling.min_tokens = 2;
    barred.spec.sampling.stop_tokens.resize(TinyModel::Get().config.vocab_size);
    std::iota(barred.spec.sampling.stop_tokens.begin(), barred.spec.sampling.stop_tokens.end(), 0);
    group.Submit(barred);
    group.Submit(MakeRequest(2, 20, 3, 5));
    group.RunUntilIdle();
    EXPECT_EQ(group.ends.at(SequenceId{1}).reason, EndReason::kFailed);
    EXPECT_EQ(group.ends.at(SequenceId{2}).reason, EndReason::kLength);
    EXPECT_EQ(group.tokens[SequenceId{2}].size(), 5u);
  });
}

TEST(StepExecutor, TenThousandRequestsLeakNothing) {
  // Groups with more ranks than cores are slow.
  static const uint64_t kRequests = comm::TestRuntime().size() > 2 ? 3000 : 10000;
  const int64_t blocks = comm::TestRuntime().size() > 2 ? 20 : 60;
  RunGroup(blocks, [](Group& group) {  // so few blocks that decoding requests are preempted
    std::mt19937 rng(11);
    const auto below = [&](uint64_t n) { return static_cast<int64_t>(rng() % n); };
    uint64_t next = 1;
    int64_t cancelled = 0;
    while (group.ends.size() < kRequests) {
      while (next <= kRequests && group.scheduler().running() + group.scheduler().waiting() < 40) {
        Request request =
            MakeRequest(next++, below(5) == 0 ? below(60) : 0, 1 + below(5), below(8));
        if (below(4) == 0) request.spec.sampling.stop_tokens = {request.spec.tokens[0]};
        group.Submit(std::move(request));
      }
      if (below(4) == 0) group.Cancel(next - 1 - below(std::min<uint64_t>(next - 1, 40)));
      group.Step();
      if (testing::Test::HasFailure()) break;
    }
    group.RunUntilIdle();
    for (const auto& [id, end] : group.ends) cancelled += end.reason == EndReason::kCancelled;
    EXPECT_EQ(group.ends.size(), kRequests);
    EXPECT_GT(cancelled, kRequests / 50);
    EXPECT_GT(group.scheduler().preemptions(), 0);
  });
}

}  // namespace
}  // namespace apb::executor
