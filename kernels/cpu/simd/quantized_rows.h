// Rows of x in eight bits, for products with quantized weights (kernels/weight_blocks.h) as dot
// products of integers (VNNI): 32 numbers share a scale, as the weights do.
#pragma once

#if defined(__AVX512VNNI__)

#include "kernels/cpu/simd/blocks.h"

namespace apb::kernels::APB_ISA {

// 32 numbers of a row; number i is scale * q[i], within half a step of 1/127 of the largest one.
struct QuantizedX {
  int8_t q[kBlockLength];
  float scale;
  float sum;            // of q
  int32_t minus_128_q;  // -128 times the sum of q, for weights whose bytes are 128 too large
};

template <typename T>
static void QuantizeRow(const T* x, int64_t n, QuantizedX* out) {
  for (int64_t b = 0; b * kBlockLength < n; ++b) {
    const __m512 low = reinterpret_cast<__m512>(LoadAs(x + b * kBlockLength));
    const __m512 high = reinterpret_cast<__m512>(LoadAs(x + b * kBlockLength + 16));
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    // Not finite: so shall the products be.
    const bool finite = top < __builtin_inff() && _mm512_cmp_ps_mask(low, high, 3) == 0;
    const __m512 inverse = _mm512_set1_ps(finite && top > 0 ? 127 / top : 0);
    const __m512i q_low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i q_high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    QuantizedX& block = out[b];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.q), _mm512_cvtsepi32_epi8(q_low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.q + 16), _mm512_cvtsepi32_epi8(q_high));
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q_low, q_high));
    block.scale = finite ? top / 127 : __builtin_nanf("");
    block.sum = static_cast<float>(sum);
    block.minus_128_q = -128 * sum;
  }
}

static inline float SumOf(__m256 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
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

}  // namespace apb::kernels::APB_ISA

#endif
