// Half precision on the CPU: conversions only. No CPU code computes in it.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/tensor_view.h"

namespace apb::kernels {

// Exact.
inline float Float16ToFloat(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x400) {  // below 2^-14: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t exponent_shift = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;  // inf, NaN: 255
  return std::bit_cast<float>(sign | ((magnitude << 13) + exponent_shift));
}

// Rounds to nearest, ties to even. Magnitudes of 65520 and more become infinite. Every NaN becomes
// 0x7fff, as on a GPU.
inline Float16 FloatToFloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  uint32_t rounded = 0;
  if (magnitude > 0x7f800000u) return Float16{0x7fff};
  if (magnitude >= 0x477ff000u) {  // 65520
    rounded = 0x7c00;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the results are multiples of 2^-24, the unit in the last place of a float from
    // 0.5 on: adding 0.5 rounds.
    rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  return Float16{static_cast<uint16_t>(sign | rounded)};
}

}  // namespace apb::kernels
