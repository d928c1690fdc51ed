// Quantized weights (kernels/weight_blocks.h) in registers: the 32 weights of a block as floats, in
// order. The scales are read with the machine's own conversion; the scalar one in weight_blocks.h is
// an inline function, which files of different instruction sets must not share.
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

// The weights of a block in the order that is cheapest, for dot products: x is brought into it by
// OrderForDots. The bytes of an int4 block become bf16 numbers by two table look-ups.
__attribute__((always_inline)) static inline void LoadForDots(const I8Block& block,
                                                              Vec (&out)[kBlockVecs]) {
  LoadBlock(block, out);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kI4Order[kBlockLength] = {0,  2,  4,  6,  16, 18, 20, 22, 1,  3,  5,
                                        7,  17, 19, 21, 23, 8,  10, 12, 14, 24, 26,
                                        28, 30, 9,  11, 13, 15, 25, 27, 29, 31};
__attribute__((always_inline)) static inline void LoadForDots(const I4Block& block,
                                                              Vec (&out)[kBlockVecs]) {
  int32_t halves;
  __builtin_memcpy(&halves, &block.scale, 4);
  const __m128 scale_zero = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
  const __m128 product = _mm_mul_ss(scale_zero, _mm_movehdup_ps(scale_zero));
  const Vec factor = reinterpret_cast<Vec>(_mm256_broadcastss_ps(scale_zero));
  const Vec minus = reinterpret_cast<Vec>(_mm256_broadcastss_ps(product));
  // High and low bytes of 0 to 15 in bf16.
  const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      0, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41));
  const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      0, -128, 0, 0x40, -128, -96, -64, -32, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70));
  const __m256i packed =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q)));
  const __m256i n = _mm256_and_si256(_mm256_srlv_epi64(packed, _mm256_setr_epi64x(0, 0, 4, 4)),
                                     _mm256_set1_epi8(15));
  const __m256i high_bytes = _mm256_shuffle_epi8(high, n), low_bytes = _mm256_shuffle_epi8(low, n);
  const UintVec words[2] = {reinterpret_cast<UintVec>(_mm256_unpacklo_epi8(low_bytes, high_bytes)),
                            reinterpret_cast<UintVec>(_mm256_unpackhi_epi8(low_bytes, high_bytes))};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = reinterpret_cast<Vec>(words[i] << 16) * factor - minus;
    out[2 * i + 1] = reinterpret_cast<Vec>(words[i] & 0xffff0000u) * factor - minus;
  }
}
#else
__attribute__((always_inline)) static inline void LoadForDots(const I4Block& block,
                                                              Vec (&out)[kBlockVecs]) {
  LoadBlock(block, out);
}
#endif

template <typename Block, typename T>
static inline void OrderForDots(const T* x, float* out) {
  for (int i = 0; i < static_cast<int>(kBlockLength); ++i) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    out[i] = ToFloat(x[sizeof(Block) == sizeof(I4Block) ? kI4Order[i] : i]);
#else
    out[i] = ToFloat(x[i]);
#endif
  }
}

// Whether W is a block of weights rather than one.
template <typename W>
constexpr bool kIsBlock = false;
template <>
constexpr bool kIsBlock<I8Block> = true;
template <>
constexpr bool kIsBlock<I4Block> = true;
// Whether a block has a zero of its own.
template <typename Block>
constexpr bool kHasZero = false;
template <>
constexpr bool kHasZero<I4Block> = true;
// Weights that a W holds.
template <typename W>
constexpr int64_t kWeightsOf = kIsBlock<W> ? kBlockLength : 1;

}  // namespace apb::kernels::APB_ISA
