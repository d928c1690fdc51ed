// Goal: every sampling parameter does what its name says, draws are a function of seed and token
// number, and rows of a batch do not mix. Method: small hand-made logits on the CPU backend and on
// a device whose memory CPU code cannot touch (tests/kernels/sample_test checks the numbers);
// 20,000 draws against exact probabilities.
#include "engine/sampling/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/engine/device/guarded_backend.h"

namespace apb::sampling {
namespace {

using Results = std::vector<absl::StatusOr<SampledToken>>;

kernels::Backend& Cpu() {
  static kernels::Backend& cpu =
      *kernels::CreateCpuBackend({.threads = 2, .force_isa = ""})->release();
  return cpu;
}

// Samples from rows of equal length.
Results SampleOn(kernels::Backend& backend, const std::vector<std::vector<float>>& logits,
                 const std::vector<SampleRequest>& requests) {
  std::vector<float> all;
  for (const std::vector<float>& row : logits) all.insert(all.end(), row.begin(), row.end());
  const auto rows = static_cast<int64_t>(logits.size()),
             vocab = static_cast<int64_t>(logits[0].size());
  auto placed = *core::Tensor::CopyOf(
      backend, kernels::TensorView::Contiguous(all.data(), kernels::DType::kF32, {rows, vocab}));
  Sampler sampler(backend);
  auto stream = *backend.NewStream();
  auto results = sampler.Sample(requests, placed.view(), *stream);
  EXPECT_TRUE(results.ok()) << results.status();
  return *std::move(results);
}

absl::StatusOr<SampledToken> SampleOne(const std::vector<float>& logits,
                                       const SamplingParams& params,
                                       const TokenCounts& counts = {}) {
  return SampleOn(Cpu(), {logits}, {{params, counts}})[0];
}

int32_t Pick(const std::vector<float>& logits, const SamplingParams& params,
             const TokenCounts& counts = {}) {
  auto result = SampleOne(logits, params, counts);
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

// Top-p without sorting the whole vocabulary must keep the same tokens as with sorting it.
TEST(Sampler, TopPOfALargeVocabulary) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(3000);
  for (float& x : logits) x = normal(rng);
  for (int i = 0; i < 40; ++i) logits[rng() % logits.size()] = 4.0f;  // ties
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double total = 0;
  for (const float x : logits) total += std::exp(x);
  for (const float share : {0.0f, 0.01f, 0.3f, 0.6f}) {
    double sum = 0;
    size_t kept = 0;
    while (kept == 0 || sum < share * total) sum += std::exp(logits[order[kept++]]);
    const std::set<int32_t> allowed(order.begin(), order.begin() + static_cast<int64_t>(kept));
    std::set<int32_t> seen;
    for (uint64_t seed = 0; seed < 2000; ++seed)
      seen.insert(Pick(logits, {.top_p = share, .seed = seed}));
    EXPECT_TRUE(std::includes(allowed.begin(), allowed.end(), seen.begin(), seen.end())) << share;
    EXPECT_GT(seen.size(), allowed.size() / 3) << share;
  }
}

TEST(Sampler, ExtremeTemperatures) {
  for (const float temperature : {1e-30f, 1e-6f, 0.0f, -1.0f})
    EXPECT_EQ(Pick({1e4f, 3.0f, 1e4f + 1, -1e30f}, {.temperature = temperature}), 2);
  std::set<int32_t> seen;
  for (uint64_t seed = 0; seed < 100; ++seed)
    seen.insert(Pick({1, 2, 3}, {.temperature = 1e30f, .seed = seed}));
  EXPECT_EQ(seen.size(), 3u);
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

// A token with several reasons for an edit gets one edit that combines them.
TEST(Sampler, PenaltiesMeet) {
  TokenCounts counts;
  const std::vector<int32_t> prompt = {0, 1, 3, 3, 77, -5};  // some are outside the vocabulary
  counts.AddPrompt(prompt);
  for (const int32_t token : {1, 2, 1, 99}) counts.AddGenerated(token);
  SamplingParams params{.temperature = 0,
                        .presence_penalty = 0.5f,
                        .frequency_penalty = 0.25f,
                        .repetition_penalty = 2.0f};
  // The logits after the edits: 4, 5 - 1, -1 - 0.75, -2, and token 4 unchanged.
  EXPECT_EQ(Pick({8, 10, -0.5f, -1, 3}, params, counts), 0);
  EXPECT_EQ(Pick({8, 10.5f, -0.5f, -1, 3}, params, counts), 1);
  EXPECT_EQ(Pick({8, 10, 9.6f, -1, 3}, params, counts), 2);
  EXPECT_EQ(Pick({8, 10, -0.5f, -1, 4.1f}, params, counts), 4);
  params.stop_tokens = {0, 1, 1, 2, -4, 1000};
  params.min_tokens = 5;
  EXPECT_EQ(Pick({8, 10, 9.6f, -1, -3}, params, counts), 3);
  EXPECT_EQ(Pick({8, 10, 9.6f, -1, -1.9f}, params, counts), 4);
}

TEST(Sampler, RowsOfABatch) {
  const std::unique_ptr<kernels::Backend> device = kernels::CreateGuardedBackend(1 << 20);
  const SamplingParams greedy{.temperature = 0}, wants{.temperature = 0, .logprobs = 1},
      barred{.temperature = 0, .stop_tokens = {1, 2}, .min_tokens = 1};
  TokenCounts none, one;
  one.AddGenerated(0);
  const std::vector<SampleRequest> requests = {{barred, none}, {wants, none}, {greedy, none},
                                               {barred, one},  {wants, one},  {barred, none}};
  const float log2 = std::log(2.0f), log6 = std::log(6.0f);
  const std::vector<std::vector<float>> logits = {{1, 2, 3}, {0, log2, log6}, {NAN, 0, 0},
                                                  {1, 3, 2}, {log6, 0, log2}, {-INFINITY, 1, 1}};
  for (kernels::Backend* backend : {device.get(), &Cpu()}) {
    const Results results = SampleOn(*backend, logits, requests);
    ASSERT_EQ(results.size(), 6u);
    EXPECT_EQ(results[0]->token, 0);
    EXPECT_EQ(results[1]->token, 2);
    EXPECT_NEAR(results[1]->logprob, std::log(6 / 9.0), 1e-5);
    EXPECT_EQ(results[2].status().code(), absl::StatusCode::kInternal);
    EXPECT_EQ(results[3]->token, 1);
    EXPECT_EQ(results[4]->token, 0);
    ASSERT_EQ(results[4]->top.size(), 1u);
    EXPECT_EQ(results[4]->top[0].first, 0);
    EXPECT_NEAR(results[4]->top[0].second, std::log(6 / 9.0), 1e-5);
    EXPECT_EQ(results[5].status().code(), absl::StatusCode::kInternal);
  }
}

TEST(Sampler, LogprobsAreOfRawLogits) {
  TokenCounts counts;
  counts.AddGenerated(1);
  auto result =
      SampleOne({0.0f, std::log(3.0f)},
                {.temperature = 0.1f, .seed = 1, .presence_penalty = 9, .logprobs = 2}, counts);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->token, 0);
  EXPECT_NEAR(result->logprob, std::log(0.25), 1e-5);
  ASSERT_EQ(result->top.size(), 2u);
  EXPECT_EQ(result->top[0].first, 1);
  EXPECT_NEAR(result->top[0].second, std::log(0.75), 1e-5);
}

TEST(Sampler, LogitsThatAllowNoDrawAreErrors) {
  const float inf = INFINITY;
  for (const std::vector<float>& logits :
       {std::vector<float>{1, NAN, 2}, {1, inf, 2}, {-inf, -inf}}) {
    for (const float temperature : {0.0f, 1.0f}) {
      EXPECT_EQ(SampleOne(logits, {.temperature = temperature, .logprobs = 1}).status().code(),
                absl::StatusCode::kInternal);
    }
  }
  EXPECT_EQ(Pick({-inf, -3.0f, -inf}, {}), 1);
  EXPECT_FALSE(SampleOne({1, 2}, {.stop_tokens = {0, 1}, .min_tokens = 1}).ok());
}

}  // namespace
}  // namespace apb::sampling
