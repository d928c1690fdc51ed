// Loads the 32 quantized weights of a block (kernels/weight_blocks.h) as floats, in order. Scales
// are converted here, because files of different instruction sets must not share an inline function
// such as the conversion in float16.h.
#pragma once

#include "kernels/cpu/simd/vector.h"
#include "kernels/weight_blocks.h"

namespace apb::kernels::APB_ISA {

constexpr int kBlockVecs = static_cast<int>(kBlockLength) / kLanes;

static inline float HalfToFloat(Float16 half) {
#if defined(__F16C__)
  return _cvtsh_ss(half.bits);
#else
  const uint32_t sign = (half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  if (magnitude < 0x400) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t bits =
      sign | ((magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u));
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

// kLanes bytes as floats.
static inline Vec FloatsOfBytes(const uint8_t* bytes) {
#if defined(__AVX512F__)
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed)));
#elif defined(__AVX2__)
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed)));
#else
  Vec floats;
  for (int i = 0; i < kLanes; ++i) floats[i] = static_cast<float>(bytes[i]);
  return floats;
#endif
}
static inline Vec FloatsOfBytes(const int8_t* bytes) {
#if defined(__AVX512F__)
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(packed)));
#elif defined(__AVX2__)
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(packed)));
#else
  Vec floats;
  for (int i = 0; i < kLanes; ++i) floats[i] = static_cast<float>(bytes[i]);
  return floats;
#endif
}

__attribute__((always_inline)) static inline void LoadBlock(const I8Block& block,
                                                            Vec (&out)[kBlockVecs]) {
  const Vec scale = Splat(HalfToFloat(block.scale));
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVecs; ++i) out[i] = FloatsOfBytes(block.q + i * kLanes) * scale;
}

__attribute__((always_inline)) static inline void LoadBlock(const I4Block& block,
                                                            Vec (&out)[kBlockVecs]) {
  const float scale = HalfToFloat(block.scale);
  const Vec factor = Splat(scale), minus = Splat(scale * HalfToFloat(block.zero));
#if defined(__AVX2__)
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q));
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i halves[2] = {_mm_and_si128(packed, mask),
                             _mm_and_si128(_mm_srli_epi16(packed, 4), mask)};
#pragma GCC unroll 4
  for (int i = 0; i < kBlockVecs; ++i) {
    const __m128i half = halves[i * kLanes / 16];
#if defined(__AVX512F__)
    const Vec n = reinterpret_cast<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(half)));
#else
    const __m128i part = i % 2 == 0 ? half : _mm_unpackhi_epi64(half, half);
    const Vec n = reinterpret_cast<Vec>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(part)));
#endif
    out[i] = n * factor - minus;
  }
#else
  uint8_t n[kBlockLength];
  for (int i = 0; i < 16; ++i) {
    n[i] = block.q[i] & 15;
    n[i + 16] = block.q[i] >> 4;
  }
  for (int i = 0; i < kBlockVecs; ++i) out[i] = FloatsOfBytes(n + i * kLanes) * factor - minus;
#endif
}

// Whether W is a block of weights and not a single one.
template <typename W>
constexpr bool kIsBlock = false;
template <>
constexpr bool kIsBlock<I8Block> = true;
template <>
constexpr bool kIsBlock<I4Block> = true;
// Whether a block stores a zero.
template <typename Block>
constexpr bool kHasZero = false;
template <>
constexpr bool kHasZero<I4Block> = true;
// The number of weights in a W.
template <typename W>
constexpr int64_t kWeightsOf = kIsBlock<W> ? kBlockLength : 1;

}  // namespace apb::kernels::APB_ISA
