// Goal: the softmax state's algebra in CUDA is right: keys that are added one by one, and parts
// that are combined, give the softmax over all keys. Method: random scores and values against
// float64, on the emulator; exact answers where nothing may be rounded.
#include "kernels/cuda/softmax_state.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace apb::kernels::cuda {
namespace {

struct Partial {
  SoftmaxState state;
  float out = 0;
};

// The state and output of keys with scores * scale.
Partial Attend(const std::vector<float>& scores, const std::vector<float>& values, float scale) {
  Partial part;
  for (size_t i = 0; i < scores.size(); ++i) {
    part.out *= part.state.RaiseMax(std::max(part.state.row_max, scores[i]), scale * kLog2E);
    const float weight = part.state.Weight(scores[i], scale * kLog2E);
    part.state.row_sum += weight;
    part.out += weight * values[i];
  }
  return part;
}

TEST(SoftmaxState, AddsAndCombinesKeys) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 20);
  for (int trial = 0; trial < 200; ++trial) {
    const float scale = trial % 2 == 0 ? 1.0f : 0.125f;
    std::vector<Partial> parts;
    double top = -HUGE_VAL, sum = 0, out = 0;
    std::vector<float> all_scores, all_values;
    for (int p = 0; p < 1 + trial % 5; ++p) {
      std::vector<float> scores(rng() % 40), values(scores.size());
      for (float& s : scores) s = normal(rng);
      for (float& v : values) v = normal(rng);
      parts.push_back(Attend(scores, values, scale));
      all_scores.insert(all_scores.end(), scores.begin(), scores.end());
      all_values.insert(all_values.end(), values.begin(), values.end());
    }
    for (const float s : all_scores) top = std::max(top, double{s} * scale);
    for (size_t i = 0; i < all_scores.size(); ++i) {
      const double weight = std::exp(double{all_scores[i]} * scale - top);
      sum += weight;
      out += weight * all_values[i];
    }
    Partial all;
    for (const Partial& p : parts) all.state.row_max = std::max(all.state.row_max, p.state.row_max);
    for (const Partial& p : parts) all.out += all.state.Merge(p.state, scale * kLog2E) * p.out;
    if (all_scores.empty()) {
      EXPECT_EQ(all.state.LogSumExp(scale), -INFINITY);
      EXPECT_EQ(all.state.Normalizer(), 0.0f);
      continue;
    }
    EXPECT_NEAR(all.out * all.state.Normalizer(), out / sum, 2e-3);
    EXPECT_NEAR(all.state.LogSumExp(scale), top + std::log(sum), 1e-4);
  }
}

TEST(SoftmaxState, RescalesByExactlyOneWhileTheMaximumStays) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal(0, 1000);
  for (int trial = 0; trial < 1000; ++trial) {
    SoftmaxState state;
    EXPECT_EQ(state.RaiseMax(normal(rng), 0.3f), 0.0f);
    state.row_sum = 1;
    EXPECT_EQ(state.RaiseMax(state.row_max, 0.3f), 1.0f);
    EXPECT_EQ(state.row_sum, 1.0f);
  }
}

TEST(SoftmaxState, KeepsASinglePart) {
  SoftmaxState all{77.7f, 0};
  EXPECT_EQ(all.Merge({77.7f, 1}, kLog2E), 1.0f);
  EXPECT_EQ(all.Merge({-INFINITY, 1}, kLog2E), 0.0f);
  EXPECT_EQ(all.Normalizer(), 1.0f);
  EXPECT_EQ(all.LogSumExp(1), 77.7f);
}

}  // namespace
}  // namespace apb::kernels::cuda
