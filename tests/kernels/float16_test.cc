// Goal: the CPU converts half precision correctly. Method: every Float16 to float and back, and
// floats at, beside and between all Float16s, against the definition (tests/reference).
#include "kernels/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

bool IsNan(uint16_t bits) { return (bits & 0x7fff) > 0x7c00; }

TEST(Float16, EveryOneThereAndBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Float16 x{static_cast<uint16_t>(bits)};
    const float value = Float16ToFloat(x), want = reference::Float16ToFloat(x.bits);
    if (IsNan(x.bits)) {
      ASSERT_TRUE(std::isnan(value) && std::isnan(want)) << bits;
      ASSERT_EQ(FloatToFloat16(value).bits, 0x7fff) << bits;
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(want)) << bits;
    ASSERT_EQ(FloatToFloat16(value).bits, x.bits);
  }
}

TEST(Float16, RoundsToNearestEven) {
  const auto same = [](float x) {
    ASSERT_EQ(FloatToFloat16(x).bits, reference::FloatToFloat16(x)) << std::hexfloat << x;
    ASSERT_EQ(FloatToFloat16(-x).bits, reference::FloatToFloat16(-x)) << std::hexfloat << -x;
  };
  for (uint16_t bits = 0; bits < 0x7c00; ++bits) {  // halfway to the next one, and beside that
    const float low = Float16ToFloat(Float16{bits});
    const float next =
        bits == 0x7bff ? 65536.0f : Float16ToFloat(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (next - low) / 2;
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)})
      same(x);
    // An even Float16 stays, an odd one goes up.
    ASSERT_EQ(FloatToFloat16(middle).bits, bits + bits % 2);
  }
  for (const float x : {1e9f, INFINITY, 1e-45f, 0x1p-25f, 0x1p-26f}) same(x);
  std::mt19937 rng(3);
  for (int i = 0; i < 1000000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (!std::isnan(x)) same(x);
  }
}

}  // namespace
}  // namespace apb::kernels
