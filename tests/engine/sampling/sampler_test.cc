// Goal: every sampling parameter does what its name says, and draws follow the distribution.
// Method: small hand-made logits; 20,000 draws against exact probabilities.
#include "engine/sampling/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace apb::sampling {
namespace {

int32_t Pick(std::vector<float> logits, const SamplingParams& params,
             const TokenCounts& counts = {}) {
  auto result = Sample(logits, params, counts);
  EXPECT_TRUE(result.ok()) << result.status();
  return result->token;
}

TEST(Sampler, GreedyTakesLowestIdOnTies) { EXPECT_EQ(Pick({1, 3, 3, 2}, {.temperature = 0}), 1); }

TEST(Sampler, DrawsFollowTheDistribution) {
  std::map<int32_t, int> seen;
  TokenCounts counts;
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) {
    ++seen[Pick(logits, {.temperature = 1.0f, .seed = 5}, counts)];
    counts.AddGenerated(0);
  }
  const double total = 1 + std::exp(1) + std::exp(2);
  for (int t = 0; t < 3; ++t)
    EXPECT_NEAR(seen[t] / static_cast<double>(draws), std::exp(t) / total, 0.015);
}

TEST(Sampler, CutsTheTail) {
  std::set<int32_t> k, p, m;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    k.insert(Pick({5, 4, 3, 2}, {.top_k = 2, .seed = seed}));
    p.insert(Pick({5, 4, 3, 2}, {.top_p = 0.7f, .seed = seed}));  // shares .644 .237 .087 .032
    m.insert(Pick({5, 4, 3, 2}, {.min_p = 0.2f, .seed = seed}));  // ratios 1 .37 .14 .05
  }
  EXPECT_EQ(k, (std::set<int32_t>{0, 1}));
  EXPECT_EQ(p, (std::set<int32_t>{0, 1}));
  EXPECT_EQ(m, (std::set<int32_t>{0, 1}));
}

TEST(Sampler, SameSeedSameToken) {
  for (uint64_t seed = 0; seed < 20; ++seed)
    EXPECT_EQ(Pick({1, 1, 1, 1}, {.seed = seed}), Pick({1, 1, 1, 1}, {.seed = seed}));
}

TEST(Sampler, Penalties) {
  TokenCounts counts;
  const std::vector<int32_t> prompt = {0};
  counts.AddPrompt(prompt);
  counts.AddGenerated(1);
  counts.AddGenerated(1);
  EXPECT_EQ(Pick({2.0f, 1.9f, 1.5f}, {.temperature = 0, .repetition_penalty = 2.0f}, counts), 2);
  EXPECT_EQ(Pick({1.0f, 1.9f, 0.5f}, {.temperature = 0, .presence_penalty = 1.0f}, counts), 0);
  EXPECT_EQ(Pick({1.0f, 1.9f, 0.5f}, {.temperature = 0, .presence_penalty = 0.5f}, counts), 1);
  EXPECT_EQ(Pick({1.0f, 1.9f, 0.5f}, {.temperature = 0, .frequency_penalty = 0.5f}, counts), 0);
}

TEST(Sampler, MinTokensBarsStopTokens) {
  TokenCounts counts;
  SamplingParams params{.temperature = 0, .stop_tokens = {2}, .min_tokens = 1};
  EXPECT_EQ(Pick({0, 1, 5}, params, counts), 1);
  counts.AddGenerated(1);
  EXPECT_EQ(Pick({0, 1, 5}, params, counts), 2);
}

TEST(Sampler, LogprobsAreOfRawLogits) {
  std::vector<float> logits = {0.0f, std::log(3.0f)};
  auto result = Sample(logits, {.temperature = 0.1f, .seed = 1, .logprobs = 2}, {});
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->top.size(), 2u);
  EXPECT_EQ(result->top[0].first, 1);
  EXPECT_NEAR(result->top[0].second, std::log(0.75), 1e-5);
}

TEST(Sampler, NanIsAnError) {
  std::vector<float> logits = {0, NAN};
  EXPECT_EQ(Sample(logits, {}, {}).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace apb::sampling
