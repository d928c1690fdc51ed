// Goal: quantized weights have the format of their definition, are near the original weights, and
// are multiplied correctly. Method: float64 decoding of the bytes (tests/reference), error bounds
// that follow from the formats, and products of all backends against float64.
#include "kernels/weight_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/backends.h"
#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;

std::vector<double> Quantized(const std::vector<float>& weights, DType type) {
  const auto count = static_cast<int64_t>(weights.size());
  HostTensor blocks = HostTensor::Zeros(type, {1, count});
  EXPECT_TRUE(EncodeBlocks(weights.data(), count, type, blocks.view.data));
  std::vector<float> decoded(count);
  DecodeBlocks(type, blocks.view.data, count, decoded.data());
  std::vector<double> exact = reference::ToDoubles(blocks.view);
  for (int64_t i = 0; i < count; ++i) {
    // A product of two numbers of few bits; for int4 also a difference that is rounded once.
    EXPECT_NEAR(decoded[i], exact[i], 1e-6 * std::abs(exact[i]) + 1e-12);
  }
  return exact;
}

double SquaredError(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

std::vector<float> Normal(int64_t count, float deviation, std::mt19937& rng, float mean = 0) {
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> x(count);
  for (float& value : x) value = normal(rng);
  return x;
}

TEST(WeightBlocks, Int8IsWithinHalfAStep) {
  std::mt19937 rng(1);
  for (const float deviation : {1e-3f, 0.02f, 3.0f, 1000.0f}) {
    const std::vector<float> x = Normal(32, deviation, rng);
    double top = 0;
    for (const float value : x) top = std::max(top, std::abs(double{value}));
    const std::vector<double> q = Quantized(x, DType::kI8Block);
    // The scale is rounded to 11 bits (or, if small, to a multiple of 2^-24), which moves 127
    // steps.
    const double scale = top / 127, rounded = std::max(scale * 0x1p-11, 0x1p-25);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(q[i], x[i], scale / 2 + 127 * rounded);
  }
}

TEST(WeightBlocks, Int4IsAtLeastAsGoodAsTheWholeRange) {
  std::mt19937 rng(2);
  double searched = 0, plain = 0;
  for (int group = 0; group < 200; ++group) {
    const std::vector<float> x = Normal(32, 0.02f, rng, group % 2 == 0 ? 0.0f : 0.05f);
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    const double step = (double{*high} - *low) / 15;
    std::vector<double> q(32);
    for (size_t i = 0; i < 32; ++i) q[i] = *low + step * std::nearbyint((x[i] - *low) / step);
    const double error = SquaredError(x, Quantized(x, DType::kI4Block));
    // Rounding the zero to half precision costs a little if the range is far from 0.
    EXPECT_LT(error, SquaredError(x, q) * 1.02);
    searched += error;
    plain += SquaredError(x, q);
  }
  EXPECT_LT(searched, 0.9 * plain);
}

TEST(WeightBlocks, WhatTheFormatsHoldComesBack) {
  std::vector<float> eight(64), four(64);
  for (int i = 0; i < 64; ++i) {
    eight[i] = 0.25f * static_cast<float>(i == 5 || i == 37 ? 127 : i * 3 - 96);
    four[i] = 0.5f * static_cast<float>(i % 16 - 11);
  }
  EXPECT_LT(SquaredError(eight, Quantized(eight, DType::kI8Block)), 1e-12);
  EXPECT_LT(SquaredError(four, Quantized(four, DType::kI4Block)), 1e-12);
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    for (const float same : {0.0f, 1.5f, -0.75f}) {
      const std::vector<float> x(32, same);
      EXPECT_LT(SquaredError(x, Quantized(x, type)), 32 * 1e-6 * same * same + 1e-30);
    }
    for (const float tiny : {1e-9f, 1e-30f}) {  // become almost 0
      std::vector<float> x(32, tiny);
      x[3] = -tiny;
      for (const double q : Quantized(x, type)) EXPECT_LE(std::abs(q), 1e-7);
    }
    std::vector<float> x(32, 1.0f), blocks(64);
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::nanf(""), 1e30f}) {
      x[7] = bad;
      EXPECT_FALSE(EncodeBlocks(x.data(), 32, type, blocks.data())) << bad;
    }
  }
}

TEST(WeightBlocks, ViewsCountInBlocks) {
  std::mt19937 rng(3);
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    const HostTensor whole = HostTensor::Random(type, {6, 96}, rng);
    const TensorView part = whole.view.Rows(2, 5).Columns(32, 96);
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t column = 0; column < 64; ++column)
        ASSERT_EQ(reference::At(part, row, column),
                  reference::At(whole.view, row + 2, column + 32));
  }
  EXPECT_EQ(BytesOf(DType::kI8Block, 96), 102);
  EXPECT_EQ(BytesOf(DType::kI4Block, 96), 60);
  EXPECT_EQ(BytesOf(DType::kBF16, 96), 192);
}

// Whether this code path multiplies quantized weights as integers, which also rounds x.
bool RoundsX(std::string_view backend) { return backend != "portable"; }

// x with each 32 numbers of a row rounded to multiples of 1/127 of the largest one.
HostTensor RoundedX(const TensorView& x) {
  HostTensor rounded = HostTensor::Zeros(DType::kF32, {x.shape[0], x.shape[1]});
  for (int64_t r = 0; r < x.shape[0]; ++r) {
    for (int64_t b = 0; b < x.shape[1]; b += 32) {
      float top = 0;
      for (int64_t i = b; i < b + 32; ++i)
        top = std::max(top, std::abs(static_cast<float>(reference::At(x, r, i))));
      for (int64_t i = b; i < b + 32; ++i) {
        const auto number = static_cast<float>(reference::At(x, r, i));
        rounded.view.as<float>()[r * x.shape[1] + i] =
            top > 0 ? std::nearbyint(number * (127 / top)) * (top / 127) : 0.0f;
      }
    }
  }
  return rounded;
}

class BlockLinear : public testing::TestWithParam<std::string> {};

void ExpectProduct(Backend& backend, const LinearArgs& args, bool rounds_x) {
  auto stream = *backend.NewStream();
  LinearArgs rounded = args;
  const HostTensor x = RoundedX(args.x);
  if (rounds_x) rounded.x = x.view;
  std::vector<double> want = reference::Linear(rounded);
  const std::vector<double> before = reference::ToDoubles(args.out);
  for (size_t i = 0; args.accumulate && i < want.size(); ++i) want[i] += before[i];
  backend.Linear(args, *stream);
  ASSERT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
  const std::vector<double> got = reference::ToDoubles(args.out);
  const double roundoff = reference::Roundoff(args.out.dtype);
  double top = 0;
  for (const double value : want) top = std::max(top, std::abs(value));
  for (size_t i = 0; i < want.size(); ++i)
    ASSERT_NEAR(got[i], want[i], roundoff * std::abs(want[i]) + 2e-5 * (1 + top)) << i;
}

TEST_P(BlockLinear, IsTheProductByTheDecodedWeights) {
  auto backend = MakeTestBackend(GetParam(), 2);
  if (!backend.ok()) GTEST_SKIP() << backend.status();
  std::mt19937 rng(TestSeed(4));
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    const HostTensor weight = HostTensor::Random(type, {37, 160}, rng, 0.2f);
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const HostTensor bias = HostTensor::Random(dtype, {37}, rng);
      for (const int64_t rows : {1, 2, 7, 33, 524}) {
        const HostTensor x = HostTensor::Random(dtype, {rows, 163}, rng);
        for (const DType out : {dtype, DType::kF32}) {
          const HostTensor y = HostTensor::Random(out, {rows, 40}, rng);
          ExpectProduct(**backend,
                        {.x = x.view.Columns(0, 160),
                         .weight = weight.view,
                         .bias = bias.view,
                         .out = y.view.Columns(0, 37)},
                        RoundsX(GetParam()));
          ExpectProduct(**backend,
                        {.x = x.view.Columns(0, 64),
                         .weight = weight.view.Columns(96, 160).Rows(5, 25),
                         .bias = {},
                         .out = y.view.Columns(0, 20),
                         .accumulate = true},
                        RoundsX(GetParam()));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(BlockLinear, DoesNotDependOnThreads) {
  std::mt19937 rng(5);
  const HostTensor weight = HostTensor::Random(DType::kI4Block, {301, 96}, rng),
                   x = HostTensor::Random(DType::kF32, {3, 96}, rng);
  std::vector<std::vector<double>> results;
  for (const int threads : {1, 2, 3}) {
    auto backend = MakeTestBackend(GetParam(), threads);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    auto stream = *(*backend)->NewStream();
    const HostTensor y = HostTensor::Zeros(DType::kF32, {3, 301});
    (*backend)->Linear({.x = x.view, .weight = weight.view, .bias = {}, .out = y.view}, *stream);
    ASSERT_TRUE(stream->Synchronize().ok());
    results.push_back(reference::ToDoubles(y.view));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

std::vector<std::string> CpuNames() {
  std::vector<std::string> names = TestBackendNames();
  std::erase(names, "cuda");
  return names;
}
INSTANTIATE_TEST_SUITE_P(Cpu, BlockLinear, testing::ValuesIn(CpuNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace apb::kernels
