// Goal: the distance of two distributions is that of its definition. Method: distributions whose
// probabilities are known, and a sum in double over random logits.
#include "engine/sampling/fidelity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace apb::sampling {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

TEST(CompareDistributions, OfKnownProbabilities) {
  const std::vector<float> exact = {std::log(0.5f), std::log(0.5f)};
  const std::vector<float> approx = {std::log(0.75f) + 3, std::log(0.25f) + 3};  // not normalised
  const Fidelity f = CompareDistributions(exact, approx, 1);
  EXPECT_NEAR(f.kl, 0.5 * std::log(0.5 / 0.75) + 0.5 * std::log(0.5 / 0.25), 1e-6);
  EXPECT_TRUE(f.same_top);  // the first of two equal ones
  EXPECT_NEAR(f.exact_nats, std::log(2.0), 1e-6);
  EXPECT_NEAR(f.approx_nats, std::log(4.0), 1e-6);
}

TEST(CompareDistributions, TokensThatCannotCome) {
  const std::vector<float> some = {0, 1, kNever}, all = {0, 1, 5};
  EXPECT_NEAR(CompareDistributions(some, some, 0).kl, 0, 1e-12);
  EXPECT_FALSE(CompareDistributions(some, all, 0).same_top);
  EXPECT_TRUE(std::isfinite(CompareDistributions(some, all, 0).kl));
  EXPECT_TRUE(std::isinf(CompareDistributions(all, some, 0).kl));
}

TEST(CompareDistributions, OfRandomLogits) {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal(0, 4);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> exact(1 + rng() % 3000), approx(exact.size());
    for (size_t i = 0; i < exact.size(); ++i)
      approx[i] = (exact[i] = normal(rng)) + normal(rng) / 8;
    double p_total = 0, q_total = 0, kl = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      p_total += std::exp(double{exact[i]});
      q_total += std::exp(double{approx[i]});
    }
    for (size_t i = 0; i < exact.size(); ++i) {
      const double p = std::exp(double{exact[i]}) / p_total;
      kl += p * std::log(p / (std::exp(double{approx[i]}) / q_total));
    }
    EXPECT_NEAR(CompareDistributions(exact, approx, 0).kl, kl, 1e-9 + 1e-6 * kl);
  }
}

}  // namespace
}  // namespace apb::sampling
