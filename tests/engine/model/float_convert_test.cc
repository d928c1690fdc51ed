// Goal: conversions between float types give the nearest number of the target's type, ties to even.
// Method: all 16-bit numbers, and many 32-bit numbers (random, and around ties and limits), against
// a rounding of our own in float64.
#include "engine/model/float_convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

namespace apb::model {
namespace {

using kernels::DType;

struct Format {
  DType dtype;
  int digits;        // bits of the significand, the leading one included
  int min_exponent;  // exponent of the smallest normal number
  double largest;
};
const Format kF16{DType::kF16, 11, -14, 65504.0};
const Format kBF16{DType::kBF16, 8, -126, 255 * 0x1p120};
const Format kF32{DType::kF32, 24, -126, 0xffffff * 0x1p104};

// The value of an encoding, computed from its fields.
double Value(const Format& format, uint32_t bits) {
  const int width = format.dtype == DType::kF32 ? 32 : 16, fraction_bits = format.digits - 1;
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  const int exponent_bits = width - 1 - fraction_bits;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double sign = bits >> (width - 1) ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return fraction ? NAN : sign * INFINITY;
  const double significand = exponent == 0 ? fraction : fraction + std::ldexp(1.0, fraction_bits);
  return sign *
         std::ldexp(significand, format.min_exponent - fraction_bits + std::max(0, exponent - 1));
}

// The nearest number of a format; infinity if it is too large for the format.
double Round(const Format& format, double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.digits + 1);
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::abs(rounded) > format.largest ? std::copysign(INFINITY, x) : rounded;
}

void Expect(const Format& from, const Format& to, uint32_t bits) {
  uint32_t out = 0;
  const uint16_t short_bits = static_cast<uint16_t>(bits);
  const void* source = from.dtype == DType::kF32 ? static_cast<const void*>(&bits) : &short_bits;
  const bool fits = ConvertFloats(from.dtype, source, to.dtype, &out, 1);
  const double x = Value(from, bits), expected = Round(to, x), got = Value(to, out);
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(got)) << bits;
  } else {
    EXPECT_EQ(got, expected) << bits;
    EXPECT_EQ(std::signbit(got), std::signbit(expected)) << bits;
  }
  EXPECT_EQ(fits, !std::isinf(expected) || std::isinf(x)) << x;
}

TEST(FloatConvert, EveryShortNumber) {
  for (const Format& from : {kF16, kBF16}) {
    for (const Format& to : {kF16, kBF16, kF32}) {
      for (uint32_t bits = 0; bits < 0x10000; ++bits) Expect(from, to, bits);
    }
  }
}

TEST(FloatConvert, FloatsAroundTiesAndLimits) {
  std::mt19937 rng(3);
  for (const Format& to : {kF16, kBF16, kF32}) {
    for (int i = 0; i < 200'000; ++i) Expect(kF32, to, static_cast<uint32_t>(rng()));
    if (to.dtype == DType::kF32) continue;
    for (uint32_t bits = 0; bits < 0xffff; ++bits) {
      // The middle between two neighbours (or beyond the largest number), and the floats beside it.
      const double low = Value(to, bits), high = Value(to, bits + 1);
      if (!std::isfinite(low) || std::isnan(high)) continue;
      const double middle =
          std::isinf(high) ? low + (low - Value(to, bits - 1)) / 2 : (low + high) / 2;
      const uint32_t tie = std::bit_cast<uint32_t>(static_cast<float>(middle));
      for (const uint32_t near : {tie - 1, tie, tie + 1}) Expect(kF32, to, near);
    }
  }
}

TEST(FloatConvert, OneNumberThatDoesNotFitIsSeen) {
  std::vector<float> source(1000, 1.5f);
  std::vector<uint16_t> target(1000);
  source[500] = INFINITY;
  source[501] = NAN;
  EXPECT_TRUE(ConvertFloats(DType::kF32, source.data(), DType::kF16, target.data(), 1000));
  EXPECT_EQ(target[999], 0x3e00);
  source[998] = -65520.0f;
  EXPECT_FALSE(ConvertFloats(DType::kF32, source.data(), DType::kF16, target.data(), 1000));
}

}  // namespace
}  // namespace apb::model
