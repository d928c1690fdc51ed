// Goal: the scheduler's promises: every request ends exactly once, no block is lost, order,
// fairness, cancellation within one step, preemption without repeated tokens. Method: single
// scenarios, and a seeded simulation of 100,000 requests on a false clock with an executor that
// checks every plan against its own account of blocks.
#include "engine/schedule/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "engine/attention/strategy_plan.h"
#include "engine/schedule/auto_strategy.h"

namespace apb::schedule {
namespace {

SchedulerOptions Options() {
  return {.ranks = 2,
          .default_hosts = 4,
          .block_size = 4,
          .blocks_per_rank = 64,
          .layers = 4,
          .max_model_len = 200,
          .has_retaining_heads = true,
          .full_below = 32,
          .max_batch_rows = 16,
          .max_waiting = 1000,
          .max_waiting_tokens = 1 << 20};
}

Request Make(uint64_t id, int64_t document, int64_t query, int32_t max_tokens) {
  Request r;
  r.spec.id = SequenceId{id};
  r.spec.hosts = 0;
  r.spec.tokens.assign(document + query, 1);
  r.spec.query_begin = document;
  r.spec.embedded_query.assign(std::min<int64_t>(query, 3), 1);
  r.spec.sampling.max_tokens = max_tokens;
  return r;
}

// Executes plans like a rank would and checks them.
class FakeExecutor {
 public:
  explicit FakeExecutor(Scheduler& scheduler) : scheduler_(scheduler) {}
  // One step; tokens drawn count up per sequence, so repeats and gaps show.
  StepPlan Step() {
    StepPlan plan = scheduler_.NextStep(now_);
    for (const SequenceId id : plan.releases) {
      EXPECT_EQ(live_.erase(id), 1u);
      layers_.erase(id);
    }
    for (const SequenceSpec& spec : plan.admissions) {
      EXPECT_TRUE(live_.emplace(spec.id, spec).second);
      if (spec.cached_tokens > 0) {
        EXPECT_TRUE(live_.contains(spec.parent));
        EXPECT_LT(spec.cached_tokens, static_cast<int64_t>(spec.tokens.size()));
        ++forks;
      }
    }
    StepResult result;
    for (const PrefillSlice& slice : plan.prefill) {
      EXPECT_FALSE(slice.ids.empty());
      for (const SequenceId id : slice.ids) {
        EXPECT_TRUE(live_.contains(id));
        // Sequences of a batch are at the same layer, always.
        EXPECT_EQ(std::exchange(layers_[id], slice.layer_end), slice.layer_begin);
      }
      EXPECT_LT(slice.layer_begin, slice.layer_end);
      result.prefill_seconds = 0.01 * (slice.layer_end - slice.layer_begin);
    }
    int64_t rows = 0;
    for (const RowSpan& span : plan.rows) {
      EXPECT_TRUE(live_.contains(span.id));
      rows += static_cast<int64_t>(span.tokens.size());
      if (span.sample)
        result.tokens.push_back(
            {.id = span.id, .token = static_cast<int32_t>(span.position + span.tokens.size() - 1)});
      if (span.sample && span.id == undrawable) {
        result.tokens.pop_back();
        result.failures.push_back({span.id, absl::InternalError("NaN")});
      }
    }
    EXPECT_LE(rows, 16);
    now_ += absl::Milliseconds(10);
    scheduler_.Complete(plan, result, now_);
    for (Event& e : scheduler_.TakeEvents()) {
      if (e.kind == Event::Kind::kToken) tokens[e.id].push_back(e.token.token);
      if (e.kind == Event::Kind::kEnd) {
        EXPECT_TRUE(ends.emplace(e.id, e).second) << "ended twice";
      }
    }
    return plan;
  }
  void RunUntilIdle() {
    for (int i = 0; i < 100000 && !scheduler_.idle(); ++i) Step();
    EXPECT_TRUE(scheduler_.idle());
    EXPECT_TRUE(live_.empty());
    for (int r = 0; r < 2; ++r) EXPECT_EQ(scheduler_.used_blocks(r), 0);
  }
  absl::Time now() const { return now_; }
  size_t live() const { return live_.size(); }
  std::map<SequenceId, std::vector<int32_t>> tokens;
  std::map<SequenceId, Event> ends;
  int64_t forks = 0;        // sequences that began with cached KV
  SequenceId undrawable{};  // its logits are bad

 private:
  Scheduler& scheduler_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<SequenceId, SequenceSpec> live_;
  std::map<SequenceId, int32_t> layers_;
};

TEST(Scheduler, OneRequestFromStartToEnd) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 40, 5, 3), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.tokens[SequenceId{1}],
            (std::vector<int32_t>{44, 45, 46}));  // the rows that they were drawn from
  const Event& end = run.ends.at(SequenceId{1});
  EXPECT_EQ(end.reason, EndReason::kLength);
  EXPECT_EQ(end.strategy, "apb");  // 40 >= full_below
  EXPECT_GT(end.prefill_seconds, 0);
}

TEST(Scheduler, AutoChoosesByLengthAndExactness) {
  for (auto [document, exact, strategy] :
       {std::tuple<int64_t, bool, const char*>{15, false, "full"},
        {20, false, "ring_kv"},
        {100, false, "apb"},
        {100, true, "ring_kv"},
        {15, true, "full"}}) {
    SchedulerOptions options = Options();
    options.ring_from = 16;
    Scheduler scheduler(options);
    FakeExecutor run(scheduler);
    Request r = Make(1, document, 3, 1);
    r.exact = exact;
    scheduler.Submit(r, run.now());
    run.RunUntilIdle();
    EXPECT_EQ(run.ends.at(SequenceId{1}).strategy, strategy);
  }
}

// What `auto` becomes for an exact request.
std::string ExactChoice(const SchedulerOptions& options, int64_t document) {
  Request r = Make(1, document, 3, 1);
  r.exact = true;
  const auto layout = ResolveRequest(options, r);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return r.spec.strategy;
}

SchedulerOptions LargeOptions(int ranks) {
  SchedulerOptions options = Options();
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
  EXPECT_EQ(ExactChoice(options, 1), "full");  // nothing to gain
  EXPECT_EQ(ExactChoice(options, 10000), "ring_kv");
  options.speed.link_latency_seconds = 10;  // no link is worth it
  EXPECT_EQ(ExactChoice(options, 10000), "full");
  options.blocks_per_rank = 1000;  // but one rank cannot hold it
  EXPECT_EQ(ExactChoice(options, 10000), "ring_kv");
  options = LargeOptions(4);
  options.ring_from = 20000;
  EXPECT_EQ(ExactChoice(options, 10000), "full");
  EXPECT_EQ(ExactChoice(LargeOptions(1), 10000), "full");
}

// Over speeds of the links: nothing else would be much faster, and the same prompt is computed the
// same way.
TEST(Scheduler, ExactAutoIsNearTheBest) {
  std::set<std::string> chosen;
  for (const int ranks : {2, 4, 8}) {
    for (double bytes_per_second = 1e6; bytes_per_second < 1e12; bytes_per_second *= 3) {
      for (const int64_t document : {64, 1000, 8000, 100000}) {
        SchedulerOptions options = LargeOptions(ranks);
        options.speed.link_bytes_per_second = bytes_per_second;
        const auto seconds = [&](std::string_view strategy) {
          const auto plan = attention::MakeShardPlan(
              strategy, {.document_length = document, .query_length = 1}, {.hosts = ranks});
          return attention::PredictPrefill(*plan, ranks, 0, options.model, options.speed).seconds;
        };
        const std::string choice = ExactChoice(options, document);
        EXPECT_EQ(ExactChoice(options, document), choice);
        chosen.insert(choice);
        for (const char* other : {"full", "ring_kv", "ring_q", "token_ring", "ulysses"}) {
          // Each step of the choice forgives a tenth.
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
  // So few rows hide no keys: queries travel.
  EXPECT_NE(FastestOverPrefix(options, 500000, 500600), "ring_kv");
}

TEST(Scheduler, AutoIsExactWhereNothingCanSelect) {
  SchedulerOptions options = Options();
  options.has_retaining_heads = false;
  Request r = Make(1, 100, 3, 1);
  ASSERT_TRUE(ResolveRequest(options, r).ok());
  EXPECT_EQ(r.spec.strategy, "apb");  // by the query
  r = Make(1, 100, 3, 1);
  r.spec.embedded_query.clear();
  ASSERT_TRUE(ResolveRequest(options, r).ok());
  EXPECT_TRUE(attention::IsExact(r.spec.strategy)) << r.spec.strategy;
}

// The request's word counts, else the group's; only apb has blocks to balance, and KV of other
// blocks is not reused.
TEST(Scheduler, BalancedBlocks) {
  SchedulerOptions options = Options();
  options.model = {
      .layers = 4, .hidden_size = 64, .mlp_size = 64, .query_heads = 4, .head_dim = 16};
  const int64_t cost = attention::RowCostInPairs(options.model, options.speed);
  for (const bool by_default : {false, true}) {
    options.balanced = by_default;
    for (const std::optional<bool> wanted : {std::optional<bool>(), {true}, {false}}) {
      for (const char* strategy : {"apb", "auto", "star", "full"}) {
        Request r = Make(1, 100, 3, 1);
        r.spec.strategy = strategy;
        r.balanced = wanted;
        const auto layout = ResolveRequest(options, r);
        ASSERT_TRUE(layout.ok()) << layout.status();
        const bool balanced = wanted.value_or(by_default) && r.spec.strategy == "apb";
        EXPECT_EQ(r.spec.row_cost_pairs, balanced ? cost : 0);
        if (strategy != std::string_view("full")) {
          EXPECT_EQ(layout->Count(0, 100) > 50, balanced) << strategy;
        }
      }
    }
  }
  // No room for the longer first block: equal ones.
  options.balanced = true;
  options.blocks_per_rank = 28;  // of 4 tokens; 100 + 3 + 121 tokens are all that fit
  options.max_model_len = 224;
  for (const int32_t max_tokens : {1, 121}) {
    Request r = Make(1, 100, 3, max_tokens);
    r.spec.strategy = "apb";
    ASSERT_TRUE(ResolveRequest(options, r).ok());
    EXPECT_EQ(r.spec.row_cost_pairs, max_tokens == 1 ? cost : 0);
    EXPECT_EQ(r.spec.sampling.max_tokens, max_tokens);
  }
  options = Options();
  options.prefix_cache = true;
  options.max_model_len = 400;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  int64_t cached[3];
  for (const uint64_t id : {0, 1, 2}) {  // balanced, equal, balanced
    Request r = Make(id + 1, 100, 30, 1);
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
  SchedulerOptions options = Options();
  options.model = {.layers = 4,
                   .hidden_size = 4096,
                   .mlp_size = 14336,
                   .query_heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128};
  const auto resolve = [&](const char* strategy) {
    Request r = Make(1, 150, 3, 1);
    r.spec.strategy = strategy;
    return ResolveRequest(options, r).status();
  };
  EXPECT_TRUE(resolve("full").ok());  // not bounded
  // A row takes 8 KiB of hidden states, 20 KiB of attention's and 64 KiB of the chunk's.
  options.prefill_bytes = 12 << 20;
  const absl::Status refused = resolve("full");
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("takes 13 MiB"));
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("12 MiB are free"));
  EXPECT_TRUE(resolve("ring_kv").ok());  // half of the rows
  EXPECT_TRUE(resolve("apb").ok());
}

TEST(Scheduler, ExactStrategiesHaveOneHostOnEachRank) {
  SchedulerOptions options = Options();
  for (auto [strategy, hosts, query_heads, fits] :
       {std::tuple<const char*, int, int, bool>{"ring_kv", 0, 4, true},
        {"ring_q", 2, 4, true},
        {"token_ring", 4, 4, false},
        {"ulysses", 0, 4, true},
        {"ulysses", 0, 3, false}}) {
    options.model.query_heads = query_heads;
    Scheduler scheduler(options);
    FakeExecutor run(scheduler);
    Request r = Make(1, 50, 3, 1);
    r.spec.strategy = strategy;
    r.spec.hosts = hosts;
    r.exact = true;
    scheduler.Submit(r, run.now());
    run.Step();  // events of a refused request too
    run.RunUntilIdle();
    const Event& end = run.ends.at(SequenceId{1});
    EXPECT_EQ(end.reason, fits ? EndReason::kLength : EndReason::kRejected) << strategy;
    EXPECT_EQ(end.status.ok(), fits) << strategy << end.status;
  }
}

TEST(Scheduler, RejectsWhatCannotRun) {
  SchedulerOptions options = Options();
  options.max_waiting = 2;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  Request bad_hosts = Make(1, 100, 3, 1);
  bad_hosts.spec.hosts = 3;
  bad_hosts.spec.strategy = "apb";
  Request unknown = Make(2, 100, 3, 1);
  unknown.spec.strategy = "magic";
  Request contradiction = Make(3, 100, 3, 1);
  contradiction.spec.strategy = "apb";
  contradiction.exact = true;
  Request no_query = Make(4, 10, 0, 1);
  for (const Request& r : {bad_hosts, unknown, contradiction, no_query, Make(5, 300, 3, 1)})
    scheduler.Submit(r, run.now());
  for (uint64_t id = 6; id < 9; ++id) scheduler.Submit(Make(id, 40, 3, 1), run.now());
  run.RunUntilIdle();
  for (uint64_t id = 1; id <= 5; ++id) {
    EXPECT_EQ(run.ends.at(SequenceId{id}).reason, EndReason::kRejected) << id;
    EXPECT_EQ(run.ends.at(SequenceId{id}).status.code(), absl::StatusCode::kInvalidArgument) << id;
  }
  EXPECT_EQ(run.ends.at(SequenceId{8}).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(run.ends.at(SequenceId{7}).reason, EndReason::kLength);
}

// These would be errors of the executor, which end the group for everyone.
TEST(Scheduler, RejectsWhatWouldHarmOthers) {
  SchedulerOptions options = Options();
  options.vocab_size = 50;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  std::vector<Request> bad(7, Make(0, 10, 3, 1));
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
  scheduler.Submit(Make(100, 10, 3, 1), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{100}).reason, EndReason::kLength);
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(run.ends.at(SequenceId{i + 1}).status.code(), absl::StatusCode::kInvalidArgument)
        << i;
  }
}

TEST(Scheduler, AFailedDrawEndsItsSequenceOnly) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  run.undrawable = SequenceId{1};
  for (uint64_t id = 1; id < 3; ++id) scheduler.Submit(Make(id, 20, 3, 4), run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kFailed);
  EXPECT_EQ(run.ends.at(SequenceId{1}).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(run.ends.at(SequenceId{2}).reason, EndReason::kLength);
  EXPECT_EQ(run.tokens[SequenceId{2}].size(), 4u);
}

// Its KV may still be on the ranks under that id.
TEST(Scheduler, AnIdIsNotUsedAgainWhileItsPrefixIsKept) {
  SchedulerOptions options = Options();
  options.prefix_cache = true;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 80, 3, 2), run.now());
  while (!scheduler.idle()) run.Step();
  EXPECT_GT(scheduler.cached_blocks(0), 0);
  run.ends.clear();
  scheduler.Submit(Make(1, 80, 3, 2), run.now());
  run.Step();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kRejected);
  scheduler.ForgetPrefixes();
  run.Step();
  run.ends.clear();
  scheduler.Submit(Make(1, 80, 3, 2), run.now());
  while (!scheduler.idle()) run.Step();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kLength);
}

TEST(Scheduler, MaxTokensZeroComputesThePromptOnly) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 40, 5, 0), run.now());
  run.RunUntilIdle();
  EXPECT_TRUE(run.tokens[SequenceId{1}].empty());
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kLength);
}

TEST(Scheduler, StopTokenEnds) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  Request r = Make(1, 10, 2, 50);
  r.spec.sampling.stop_tokens = {14};  // the fake's token is the row's position
  scheduler.Submit(r, run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kStopToken);
  EXPECT_EQ(run.tokens[SequenceId{1}].back(), 14);
}

TEST(Scheduler, StopTokenEndsAlsoAsTheFirstToken) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  Request r = Make(1, 10, 2, 50);
  r.spec.sampling.stop_tokens = {11};
  scheduler.Submit(r, run.now());
  run.RunUntilIdle();
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kStopToken);
  EXPECT_EQ(run.tokens[SequenceId{1}], std::vector<int32_t>{11});
}

TEST(Scheduler, CancelFreesWithinOneStep) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 100, 5, 50), run.now());
  run.Step();  // in the middle of the prefill
  EXPECT_GT(scheduler.used_blocks(0), 0);
  scheduler.Cancel(SequenceId{1}, run.now());
  scheduler.Cancel(SequenceId{1}, run.now());
  EXPECT_EQ(scheduler.used_blocks(0), 0);
  EXPECT_EQ(run.Step().releases, std::vector<SequenceId>{SequenceId{1}});
  EXPECT_EQ(run.live(), 0u);
  EXPECT_EQ(run.ends.at(SequenceId{1}).reason, EndReason::kCancelled);
}

TEST(Scheduler, DecodingGoesOnBesideALongPrefill) {
  Scheduler scheduler(Options());
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 8, 2, 60), run.now());
  while (run.tokens[SequenceId{1}].empty()) run.Step();
  scheduler.Submit(Make(2, 150, 2, 1), run.now());
  for (int slices = 0, i = 0; i < 2; ++i) {
    const StepPlan plan = run.Step();
    slices += static_cast<int>(plan.prefill.size());
    ASSERT_EQ(plan.rows.size(), 1u);
    ASSERT_GT(slices, 0);
  }
  run.RunUntilIdle();
}

TEST(Scheduler, ShortPrefillOvertakesALongOne) {
  SchedulerOptions options = Options();
  options.layers = 100;
  options.max_model_len = 2000;
  options.blocks_per_rank = 1000;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  scheduler.Submit(Make(1, 1500, 2, 1), run.now());
  run.Step();
  scheduler.Submit(Make(2, 50, 2, 1), run.now());
  EXPECT_EQ(run.Step().prefill[0].ids, std::vector<SequenceId>{SequenceId{2}});
  run.RunUntilIdle();
}

TEST(Scheduler, PreemptionRepeatsNoToken) {
  SchedulerOptions options = Options();
  options.blocks_per_rank = 14;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Submit(Make(id, 12, 3, 60), run.now());
  run.RunUntilIdle();
  EXPECT_GT(scheduler.preemptions(), 0);
  for (uint64_t id = 1; id <= 3; ++id) {
    const std::vector<int32_t>& tokens = run.tokens[SequenceId{id}];
    ASSERT_EQ(tokens.size(), 60u);
    // A token is the position that it was drawn at.
    for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], 14 + static_cast<int32_t>(i));
  }
}

// Documents of one exact strategy that come together are one prefill, up to a number of tokens.
TEST(Scheduler, ShortDocumentsRunTogether) {
  SchedulerOptions options = Options();
  options.blocks_per_rank = 1000;
  options.prefill_batch_tokens = 60;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  const char* strategies[] = {"ring_kv", "apb", "ring_kv", "ring_kv", "ring_q", "full", "full"};
  for (uint64_t id = 1; id <= 7; ++id) {
    Request r = Make(id, 25, 3, 1);
    r.spec.strategy = strategies[id - 1];
    scheduler.Submit(r, run.now());
  }
  std::set<std::vector<SequenceId>> batches;
  run.Step();
  scheduler.Cancel(SequenceId{6}, run.now());  // the other one of its batch goes on
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

// A prompt of `length` tokens that begins like all the others.
Request Alike(uint64_t id, int64_t length, int64_t query) {
  Request r = Make(id, length - query, query, 1);
  std::iota(r.spec.tokens.begin(), r.spec.tokens.end(), 1);
  return r;
}

TEST(Scheduler, ALongRestBehindAPrefixIsPrefilled) {
  SchedulerOptions options = Options();
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
  // Two turns of 20 and of 88 tokens, but for the last one.
  Request next = Alike(2, 111, 2);
  next.spec.strategy = "apb";
  StepPlan plan = submit(next);
  EXPECT_TRUE(plan.prefill.empty());
  EXPECT_EQ(plan.rows[0].position, 90);
  next = Alike(3, 200, 2);
  next.spec.strategy = "apb";
  plan = submit(next);
  ASSERT_EQ(plan.prefill.size(), 1u);
  EXPECT_EQ(plan.admissions[0].cached_tokens, 111);
  EXPECT_EQ(plan.admissions[0].prefix_strategy, "ring_kv");
  EXPECT_EQ(plan.admissions[0].prefill_end, 199);
  // An approximate prefill of all is less work than an exact one of most of it. Exact ones are not
  // mixed with it.
  next = Alike(4, 900, 2);
  next.spec.strategy = "apb";
  plan = submit(next);
  EXPECT_EQ(plan.admissions[0].cached_tokens, 0);
  next = Alike(5, 300, 2);
  next.spec.strategy = "token_ring";
  EXPECT_EQ(submit(next).admissions[0].cached_tokens, 0);
  // A ring that was asked for is kept; what cannot start from a prefix is not.
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

// A prefix that is much longer than what is used of it may take the room that the prompt needs.
TEST(Scheduler, APrefixDoesNotKeepItsUserOut) {
  SchedulerOptions options = Options();
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

// Every position is on one rank, however plans and rows follow each other.
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
      auto plan = attention::MakeShardPlan(
          rng() % 4 == 0 ? "full" : "ring_kv",
          {.document_length = end, .cached_length = begin, .query_length = 1}, {.hosts = ranks});
      ASSERT_TRUE(plan.ok());
      keeper.resize(end);
      for (size_t h = 0; h < plan->hosts.size(); ++h) {
        for (const attention::TokenSpan& span : plan->hosts[h].local)
          std::fill(keeper.begin() + span.begin, keeper.begin() + span.end, static_cast<int>(h));
      }
      layout.Append(*std::move(plan), end);
      if (rng() % 3 == 0) {  // the next one begins like this one
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

// ---- contexts ----

// A prompt of these tokens that is kept.
Request Context(uint64_t id, int64_t length, int32_t token = 1) {
  Request r = Make(id, length - 1, 1, 0);
  r.spec.tokens.assign(length, token);
  r.keep = true;
  return r;
}

// Goes on from such a prompt with other tokens.
Request Question(uint64_t id, const Request& context, int64_t tokens, int32_t max_tokens) {
  Request r = context;
  r.spec.id = SequenceId{id};
  r.spec.tokens.insert(r.spec.tokens.end(), tokens, 40);
  r.spec.sampling.max_tokens = max_tokens;
  r.keep = false;
  r.context = context.spec.id;
  return r;
}

class SchedulerContexts : public testing::TestWithParam<bool> {
 protected:
  SchedulerContexts() : scheduler_(WithCache()), run_(scheduler_) {}
  static SchedulerOptions WithCache() {
    SchedulerOptions options = Options();
    options.prefix_cache = GetParam();
    return options;
  }
  void Submit(const Request& request) { scheduler_.Submit(request, run_.now()); }
  void Run() {
    for (int i = 0; i < 100000 && !scheduler_.idle(); ++i) run_.Step();
    run_.Step();  // takes the events of what was refused
    EXPECT_TRUE(scheduler_.idle());
  }
  const Event& End(uint64_t id) { return run_.ends.at(SequenceId{id}); }

  Scheduler scheduler_;
  FakeExecutor run_;
};
INSTANTIATE_TEST_SUITE_P(PrefixCache, SchedulerContexts, testing::Bool());

TEST_P(SchedulerContexts, StayUntilTheyAreCancelled) {
  for (const int64_t length : {7, 120}) {  // shorter than what the prefix cache takes, too
    const uint64_t id = length * 100;
    const Request context = Context(id, length, 7);
    Submit(context);
    Run();
    EXPECT_EQ(End(id).reason, EndReason::kLength);
    EXPECT_GT(scheduler_.kept_blocks(0) + scheduler_.kept_blocks(1), 0);
    EXPECT_EQ(scheduler_.used_blocks(0), 0);
    // These need all the rest.
    for (uint64_t i = 1; i <= 20; ++i) Submit(Make(id + i, 100, 20, 20));
    Submit(Question(id + 30, context, 3, 4));
    Run();
    EXPECT_EQ(End(id + 30).reason, EndReason::kLength);
    EXPECT_EQ(End(id + 30).cached_tokens, length);
    EXPECT_EQ(End(id + 30).strategy, End(id).strategy);
    scheduler_.Cancel(SequenceId{id}, run_.now());
    EXPECT_EQ(scheduler_.kept_blocks(0), 0);
    Submit(Question(id + 31, context, 3, 4));
    Run();
    EXPECT_EQ(End(id + 31).status.code(), absl::StatusCode::kNotFound);
    scheduler_.ForgetPrefixes();
    run_.Step();
    EXPECT_EQ(run_.live(), 0u);
  }
}

TEST_P(SchedulerContexts, ServeOnlyTheirNamesWithoutAPrefixCache) {
  const Request context = Context(1, 120, 7);
  Submit(context);
  Run();
  Request stranger = Question(2, context, 10, 1);
  stranger.context.reset();
  Submit(stranger);
  Run();
  EXPECT_EQ(End(2).cached_tokens, GetParam() ? 120 : 0);
}

TEST_P(SchedulerContexts, FollowUpTurnsGoOnBehindThem) {
  const Request context = Context(1, 90, 7);
  Submit(context);
  Run();
  for (uint64_t turn = 0; turn < 3; ++turn) {
    Submit(Question(2 + turn, context, 10 + 10 * static_cast<int64_t>(turn), 1));
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
  const Request context = Context(1, 120, 7);
  Submit(context);
  Run();
  Submit(Question(2, context, 5, 3));  // waits
  scheduler_.Cancel(SequenceId{1}, run_.now());
  for (uint64_t id = 3; id < 8; ++id) Submit(Make(id, 150, 3, 3));  // would evict it
  Run();
  EXPECT_EQ(End(2).cached_tokens, 120);
  scheduler_.ForgetPrefixes();
  run_.Step();
  EXPECT_EQ(run_.live(), 0u);
  EXPECT_EQ(scheduler_.cached_blocks(0), 0);
}

// Also a creation that ends while the server takes it back.
TEST_P(SchedulerContexts, AreNotKeptWhenCancelledBeforeTheyAreDone) {
  Submit(Context(1, 120));
  run_.Step();
  scheduler_.Cancel(SequenceId{1}, run_.now());
  Run();
  EXPECT_EQ(End(1).reason, EndReason::kCancelled);
  EXPECT_EQ(scheduler_.kept_blocks(0), 0);
}

TEST_P(SchedulerContexts, RefuseWhatCanNeverFitBesideThem) {
  const Request context = Context(1, 180, 7);
  for (const Request& r : {context, Context(2, 180, 8)}) Submit(r);  // 46 of 64 blocks
  Run();
  Submit(Make(3, 8, 2, 30));
  while (run_.tokens[SequenceId{3}].empty()) run_.Step();
  Submit(Make(4, 150, 3, 1));
  Submit(Context(5, 150));
  Submit(Make(6, 60, 3, 2));  // not held up by them
  run_.Step();
  run_.Step();
  for (const uint64_t id : {4, 5}) {
    EXPECT_EQ(End(id).status.code(), absl::StatusCode::kResourceExhausted) << End(id).status;
    EXPECT_NE(End(id).status.message().find("contexts hold 184 of the 256"), std::string::npos)
        << End(id).status;
  }
  Submit(Question(7, context, 3, 2));
  Run();
  for (const uint64_t id : {3, 6, 7}) EXPECT_EQ(End(id).reason, EndReason::kLength);
  scheduler_.Cancel(SequenceId{2}, run_.now());
  Submit(Make(8, 150, 3, 1));
  Run();
  EXPECT_EQ(End(8).reason, EndReason::kLength);
}

// One that waits for its context, which is kept no longer, must not stop the one ahead of it for
// ever, since it does not run either.
TEST_P(SchedulerContexts, NobodyWaitsForWhatCannotCome) {
  const Request context = Context(1, 190, 7);
  Submit(context);
  Submit(Context(2, 190, 8));
  Run();
  Submit(Make(3, 180, 3, 1));
  Submit(Question(4, context, 3, 1));
  scheduler_.Cancel(SequenceId{1}, run_.now());
  Run();
  EXPECT_EQ(End(3).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(End(4).reason, EndReason::kLength);
}

// The end of the cache has come nearer: no error in the middle of an answer, and no token twice.
TEST_P(SchedulerContexts, EndAnAnswerThatRunsIntoThem) {
  Submit(Make(1, 8, 2, 180));
  while (run_.tokens[SequenceId{1}].empty()) run_.Step();
  for (uint64_t id = 2; id < 5; ++id) Submit(Context(id, 150, static_cast<int32_t>(id)));
  Run();
  EXPECT_EQ(End(1).reason, EndReason::kLength) << End(1).status;
  const std::vector<int32_t>& tokens = run_.tokens[SequenceId{1}];
  EXPECT_LT(tokens.size(), 60u);
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], 9 + static_cast<int32_t>(i));
}

TEST_P(SchedulerContexts, OfOtherTokensOrWithAnAnswerAreRefused) {
  const Request context = Context(1, 20, 7);
  Submit(context);
  Run();
  Request other = Question(2, context, 3, 1), same = Question(3, context, 0, 1);
  other.spec.tokens[5] = 8;
  Request talks = Context(4, 20);
  talks.spec.sampling.max_tokens = 1;
  for (const Request& r : {other, same, talks}) Submit(r);
  Run();
  for (const uint64_t id : {2, 3, 4})
    EXPECT_EQ(End(id).status.code(), absl::StatusCode::kInvalidArgument) << id;
}

class SchedulerSimulation : public testing::TestWithParam<bool> {};

TEST_P(SchedulerSimulation, HundredThousandRequestsWithCancels) {
  SchedulerOptions options = Options();
  options.prefix_cache = GetParam();  // all prompts are the same token, so all share prefixes
  options.ring_from = 16;
  Scheduler scheduler(options);
  FakeExecutor run(scheduler);
  std::mt19937 rng(9);
  uint64_t next = 1, questions = 0;
  const uint64_t total = 100000;
  std::vector<Request> contexts;  // three at most, in their creation or kept
  while (next <= total || !scheduler.idle()) {
    const int rush = next / 10000 % 2 == 0 ? 12 : 2;  // the queue is full, and then it is not
    for (int i = static_cast<int>(rng() % rush); i > 0 && next <= total; --i) {
      scheduler.Submit(
          Make(next++, rng() % 3 == 0 ? rng() % 120 : rng() % 20, 1 + rng() % 20, rng() % 6),
          run.now());
    }
    if (rng() % 3 == 0 && next > 1)
      scheduler.Cancel(SequenceId{next - 1 - rng() % std::min<uint64_t>(next - 1, 30)}, run.now());
    if (contexts.size() == 3 && rng() % 50 == 0) {
      scheduler.Cancel(contexts.front().spec.id, run.now());
      contexts.erase(contexts.begin());
    }
    if (contexts.size() < 3 && next <= total) {
      contexts.push_back(Context(next++, 1 + rng() % 100));
      scheduler.Submit(contexts.back(), run.now());
    }
    if (!contexts.empty() && next <= total && rng() % 2 == 0) {
      const Request& context = contexts[rng() % contexts.size()];
      scheduler.Submit(Question(next++, context, 1 + rng() % 20, rng() % 6), run.now());
    }
    run.Step();
    for (int r = 0; r < 2; ++r) {
      ASSERT_LE(scheduler.kept_blocks(r), scheduler.cached_blocks(r));
      ASSERT_GE(scheduler.used_blocks(r), 0);
      ASSERT_GE(scheduler.cached_blocks(r), 0);
      ASSERT_LE(scheduler.used_blocks(r) + scheduler.cached_blocks(r), 64);
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
  for (int r = 0; r < 2; ++r) EXPECT_EQ(scheduler.cached_blocks(r), 0);
}
INSTANTIATE_TEST_SUITE_P(PrefixCache, SchedulerSimulation, testing::Bool());

}  // namespace
}  // namespace apb::schedule
