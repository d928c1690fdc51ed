// Rows of x quantized to eight bits, so that products with quantized weights
// (kernels/weight_blocks.h) are dot products of integers. 32 numbers share a scale, like the
// weights.
#pragma once

#if defined(__AVX2__)

#include "kernels/cpu/simd/blocks.h"

namespace apb::kernels::APB_ISA {

// 32 numbers of a row. Number i is scale * q[i], with an error of at most half a step, which is
// 1/127 of the largest magnitude.
struct QuantizedX {
  int8_t q[kBlockLength];
  float scale;
  float sum;            // of the q[i]
  int32_t minus_128_q;  // -128 times that sum, for weights whose bytes are stored 128 too large
};

#if defined(__AVX512F__)
static inline float SumOf(__m256 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
#endif

// Rounds to the nearest integers and stores them as bytes. |x| <= 127.
static inline void StoreBytes(int8_t* out, const Vec (&x)[kBlockVecs]) {
#if defined(__AVX512F__)
  for (int i = 0; i < kBlockVecs; ++i) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x[i])));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * kLanes), bytes);
  }
#else
  const auto pair = [&](int i) {
    return _mm256_packs_epi32(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x[i])),
                              _mm256_cvtps_epi32(reinterpret_cast<__m256>(x[i + 1])));
  };
  const __m256i bytes = _mm256_packs_epi16(pair(0), pair(2));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
#endif
}

// Quantizes 32 numbers.
template <typename T>
static QuantizedX QuantizeBlock(const T* x) {
  Vec v[kBlockVecs], top = Vec{}, infinite = Vec{};
  for (int i = 0; i < kBlockVecs; ++i) {
    v[i] = LoadAs(x + i * kLanes);
    top = MaxOf(top, MaxOf(v[i], -v[i]));
    infinite += v[i] - v[i];  // 0 if it is finite, else NaN
  }
  const float largest = LargestOf(top);
  // A number that is not finite makes the products NaN.
  const bool finite = SumOf(infinite) == 0;
  const Vec inverse = Splat(finite && largest > 0 ? 127 / largest : 0);
  for (int i = 0; i < kBlockVecs; ++i) v[i] *= inverse;
  QuantizedX block;
  StoreBytes(block.q, v);
  block.scale = finite ? largest / 127 : __builtin_nanf("");
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.q));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  block.sum = SumOf(_mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  block.minus_128_q = -128 * static_cast<int32_t>(block.sum);
  return block;
}

template <typename T>
static void QuantizeRow(const T* x, int64_t n, QuantizedX* out) {
  for (int64_t b = 0; b * kBlockLength < n; ++b) out[b] = QuantizeBlock(x + b * kBlockLength);
}

// Writes the row as the floats that QuantizeRow would represent.
template <typename T>
static void RoundRow(const T* x, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += kBlockLength) {
    const QuantizedX block = QuantizeBlock(x + b);
    for (int i = 0; i < kBlockVecs; ++i)
      Store(out + b + i * kLanes, FloatsOfBytes(block.q + i * kLanes) * Splat(block.scale));
  }
}

// The 32 weights of a block as unsigned bytes: weight i is scale * (byte i - zero).
__attribute__((always_inline)) static inline __m256i BytesOf(const I8Block& block) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.q));
  return _mm256_xor_si256(q, _mm256_set1_epi8(-128));  // zero is 128
}
__attribute__((always_inline)) static inline __m256i BytesOf(const I4Block& block) {
  const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q));
  const __m128i mask = _mm_set1_epi8(15);
  return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(q, 4), mask), _mm_and_si128(q, mask));
}

// Eight sums of four products each of a block's integers (less the zero) with those of x.
#if defined(__AVX512VNNI__)
__attribute__((always_inline)) static inline __m256 DotsOf(const I8Block& block,
                                                           const QuantizedX& x) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q));
  const __m256i minus = _mm256_zextsi128_si256(_mm_cvtsi32_si128(x.minus_128_q));
  return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(minus, BytesOf(block), q));
}
#else
__attribute__((always_inline)) static inline __m256 DotsOf(const I8Block& block,
                                                           const QuantizedX& x) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q));
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.q));
  // |w| * (x with the sign of w): the sum of two such products fits in 16 bits.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(q, w));
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
__attribute__((always_inline)) static inline __m256 DotsOf(const I4Block& block,
                                                           const QuantizedX& x) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q));
#if defined(__AVX512VNNI__)
  const __m256i dots = _mm256_dpbusd_epi32(_mm256_setzero_si256(), BytesOf(block), q);
#else
  const __m256i pairs = _mm256_maddubs_epi16(BytesOf(block), q);
  const __m256i dots = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
  // Each of the eight sums takes its part of the zero.
  const __m256 zero = _mm256_set1_ps(HalfToFloat(block.zero) * 0.125f);
  return _mm256_fnmadd_ps(zero, _mm256_set1_ps(x.sum), _mm256_cvtepi32_ps(dots));
}

}  // namespace apb::kernels::APB_ISA

#endif
