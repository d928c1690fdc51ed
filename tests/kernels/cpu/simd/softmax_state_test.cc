// Goal: the softmax state's algebra is right: keys that are added in any blocks, and parts that are
// combined in any number, give the softmax over all keys. Method: random scores and values against
// float64, as one row and as a vector of rows; exact answers where nothing may be rounded.
#include "kernels/cpu/simd/softmax_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace apb::kernels::APB_ISA {
namespace {

struct Keys {
  std::vector<float> scores, values;
};

Keys RandomKeys(int count, std::mt19937& rng) {
  std::normal_distribution<float> normal(0, 20);
  Keys keys;
  for (int i = 0; i < count; ++i) {
    keys.scores.push_back(normal(rng));
    keys.values.push_back(normal(rng));
  }
  return keys;
}

// The attention output and log-sum-exp in float64.
std::pair<double, double> Exact(const Keys& keys, double scale) {
  double top = -HUGE_VAL, sum = 0, out = 0;
  for (const float s : keys.scores) top = std::max(top, s * scale);
  for (size_t i = 0; i < keys.scores.size(); ++i) {
    const double weight = std::exp(keys.scores[i] * scale - top);
    sum += weight;
    out += weight * keys.values[i];
  }
  return {out / sum, top + std::log(sum)};
}

// Adds keys [begin, end) to a state and its output.
void Add(const Keys& keys, size_t begin, size_t end, float scale_log2, SoftmaxState<float>& state,
         float& out) {
  if (begin == end) return;
  const float highest = *std::max_element(keys.scores.begin() + begin, keys.scores.begin() + end);
  out *= state.RaiseMax(highest, scale_log2);
  for (size_t i = begin; i < end; ++i) {
    const float weight = Exp2(keys.scores[i] * scale_log2 - state.Reference());
    state.row_sum += weight;
    out += weight * keys.values[i];
  }
}

TEST(SoftmaxState, TakesKeysInAnyBlocks) {
  std::mt19937 rng(1);
  for (int trial = 0; trial < 200; ++trial) {
    const float scale = trial % 2 == 0 ? 1.0f : 0.125f;
    const Keys keys = RandomKeys(1 + static_cast<int>(rng() % 60), rng);
    SoftmaxState<float> state;
    float out = 0;
    for (size_t begin = 0; begin < keys.scores.size();) {
      const size_t end = std::min(keys.scores.size(), begin + 1 + rng() % 9);
      Add(keys, begin, end, scale * kLog2e, state, out);
      begin = end;
    }
    const auto [want_out, want_lse] = Exact(keys, scale);
    EXPECT_NEAR(out * state.Normalizer(), want_out, 2e-3);
    EXPECT_NEAR(state.LogSumExp(kLn2), want_lse, 1e-4);
  }
}

TEST(SoftmaxState, RescalesByExactlyOneWhileTheMaximumStays) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal(0, 1000);
  for (int trial = 0; trial < 1000; ++trial) {
    SoftmaxState<float> state;
    const float highest = normal(rng);
    EXPECT_EQ(state.RaiseMax(highest, 0.3f), 0.0f);
    state.row_sum = 1;
    EXPECT_EQ(state.RaiseMax(highest - std::abs(normal(rng)), 0.3f), 1.0f);
    EXPECT_EQ(state.row_sum, 1.0f);
  }
}

TEST(SoftmaxState, OfARowWithoutKeys) {
  SoftmaxState<float> state;
  EXPECT_EQ(state.RaiseMax(kMasked, 0.3f), 0.0f);
  EXPECT_EQ(state.Merge({-__builtin_inff(), 1}, kLog2e), 0.0f);
  EXPECT_EQ(state.Reference(), 0.0f);
  EXPECT_EQ(state.Normalizer(), 0.0f);
  EXPECT_EQ(state.LogSumExp(1), -__builtin_inff());
}

TEST(SoftmaxState, AVectorOfRowsEqualsItsRows) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal(0, 30);
  SoftmaxState<Vec> rows;
  std::vector<SoftmaxState<float>> single(kLanes);
  for (int turn = 0; turn < 20; ++turn) {
    Vec highest;
    for (int i = 0; i < kLanes; ++i) highest[i] = rng() % 4 == 0 ? kMasked : normal(rng);
    const Vec rescale = rows.RaiseMax(highest, 0.3f);
    rows.row_sum += Splat(1);
    for (int i = 0; i < kLanes; ++i) {
      EXPECT_EQ(single[i].RaiseMax(highest[i], 0.3f), rescale[i]);
      single[i].row_sum += 1;
      EXPECT_EQ(single[i].row_max, rows.row_max[i]);
      EXPECT_EQ(single[i].row_sum, rows.row_sum[i]);
      EXPECT_EQ(single[i].Reference(), rows.Reference()[i]);
    }
  }
}

TEST(CombineParts, GivesTheSoftmaxOverAllKeys) {
  std::mt19937 rng(4);
  for (int trial = 0; trial < 200; ++trial) {
    const Keys keys = RandomKeys(1 + static_cast<int>(rng() % 60), rng);
    std::vector<float> outs, lses;
    for (size_t begin = 0; begin < keys.scores.size();) {
      const size_t end = std::min(keys.scores.size(), begin + 1 + rng() % 30);
      SoftmaxState<float> state;
      float out = 0;
      Add(keys, begin, end, kLog2e, state, out);
      outs.push_back(out * state.Normalizer());
      lses.push_back(state.LogSumExp(kLn2));
      begin = end;
      if (rng() % 3 != 0) continue;
      outs.push_back(NAN);  // a part without keys
      lses.push_back(-INFINITY);
    }
    // The result takes the place of the first part.
    CombineParts(outs.data(), 1, lses.data(), 1, static_cast<int64_t>(lses.size()), 1, outs.data(),
                 lses.data());
    const auto [want_out, want_lse] = Exact(keys, 1);
    EXPECT_NEAR(outs[0], want_out, 2e-3);
    EXPECT_NEAR(lses[0], want_lse, 1e-4);
  }
}

TEST(CombineParts, KeepsASinglePart) {
  const float part[] = {1.1f, -2.7f, 3e-5f}, lse = 77.7f;
  float out[3], out_lse = 0;
  CombineParts(part, 3, &lse, 1, 1, 3, out, &out_lse);
  EXPECT_TRUE(std::equal(part, part + 3, out));
  EXPECT_EQ(out_lse, lse);
}

}  // namespace
}  // namespace apb::kernels::APB_ISA
