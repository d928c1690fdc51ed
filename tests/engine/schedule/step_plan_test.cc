// Goal: a step plan survives its way over the wire, and damaged bytes are an error, never a crash.
// Method: a round trip of a plan with every field set; all truncations; 20,000 random mutations.
#include "engine/schedule/step_plan.h"

#include <gtest/gtest.h>

#include <random>

namespace apb::schedule {
namespace {

StepPlan Example() {
  StepPlan plan;
  plan.step = 7;
  plan.releases = {SequenceId{3}};
  SequenceSpec spec{.id = SequenceId{4},
                    .tokens = {1, 2, 3},
                    .query_begin = 2,
                    .query_insert_position = 1,
                    .embedded_query = {9},
                    .strategy = "apb",
                    .strategy_options = {.compressor = "random",
                                         .hosts = 4,
                                         .anchor_length = 5,
                                         .passing_length = 6,
                                         .row_cost_pairs = 2048},
                    .generated_before = 1,
                    .parent = SequenceId{2},
                    .cached_tokens = 1,
                    .prefill_end = 2,
                    .prefix_strategy = "ring_q"};
  spec.sampling.stop_tokens = {11, 12};
  spec.sampling.temperature = 0.5f;
  plan.admissions = {spec, spec};
  plan.prefill = {{{SequenceId{4}, SequenceId{6}}, 1, 3}};
  plan.spans = {{.id = SequenceId{5}, .position = 10, .tokens = {42}, .sample = true}};
  plan.collect_stats = true;
  return plan;
}

TEST(StepPlan, RoundTrip) {
  const std::string bytes = EncodeStepPlan(Example());
  auto plan = DecodeStepPlan(bytes);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(EncodeStepPlan(*plan), bytes);
  EXPECT_EQ(plan->admissions[1].sampling.stop_tokens, (std::vector<int32_t>{11, 12}));
  EXPECT_EQ(plan->admissions[1].strategy, "apb");
  EXPECT_EQ(plan->admissions[1].strategy_options.compressor, "random");
  EXPECT_EQ(plan->admissions[1].strategy_options.row_cost_pairs, 2048);
  EXPECT_EQ(plan->admissions[1].prefix_strategy, "ring_q");
  EXPECT_EQ(plan->prefill[0].ids, (std::vector<SequenceId>{SequenceId{4}, SequenceId{6}}));
  EXPECT_TRUE(plan->spans[0].sample && plan->collect_stats && !plan->shutdown);
}

TEST(StepPlan, DamagedBytes) {
  const std::string bytes = EncodeStepPlan(Example());
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_EQ(DecodeStepPlan(bytes.substr(0, n)).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(DecodeStepPlan(bytes + "x").ok());
  std::mt19937 rng(1);
  for (int i = 0; i < 20000; ++i) {
    std::string damaged = bytes;
    damaged[rng() % damaged.size()] = static_cast<char>(rng());
    (void)DecodeStepPlan(damaged);
  }
}

}  // namespace
}  // namespace apb::schedule
