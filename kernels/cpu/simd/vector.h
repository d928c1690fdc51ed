// A vector register of floats and its operations: loads of float and bf16, maxima, sums, exp2,
// transposition. Every file of this folder is compiled once for each instruction set
// (kernels/cpu/CMakeLists.txt) in a namespace of its own, APB_ISA. These files may not call inline
// functions that other files share: the linker keeps one copy, perhaps one with instructions that
// the machine lacks.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/tensor_view.h"

namespace apb::kernels::APB_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// GCC's vector extension: arithmetic and comparisons work element by element.
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
// Stands for -inf in scores: finite, so that differences stay numbers.
constexpr float kMasked = -1e30f;

static inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t RoundUp(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
static inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline Vec Load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline IntVec LoadInts(const int32_t* p) {
  IntVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline void Store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
static inline Vec Splat(float x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_set1_ps(x));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_set1_ps(x));
#else
  return reinterpret_cast<Vec>(_mm_set1_ps(x));
#endif
}

// acc += a * b. Written in assembly, because GCC 12 keeps a dozen such sums in registers only if it
// cannot choose another form of the instruction.
static inline void MultiplyAdd(Vec& acc, Vec a, Vec b) {
#if defined(__AVX2__)
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "vm"(b));
#else
  acc += a * b;
#endif
}

// The same with b in memory, read by the instruction itself.
static inline void MultiplyAdd(Vec& acc, Vec a, const float* b) {
#if defined(__AVX2__)
  typedef Vec Unaligned __attribute__((aligned(4), may_alias));
  __asm__("vfmadd231ps %2, %1, %0"
          : "+v"(acc)
          : "v"(a), "m"(*reinterpret_cast<const Unaligned*>(b)));
#else
  acc += a * Load(b);
#endif
}

static inline Vec MaxOf(Vec a, Vec b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return reinterpret_cast<Vec>(
      _mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#endif
}

static inline float MaxOf(float a, float b) { return b > a ? b : a; }

static inline float ToFloat(uint16_t b) {
  uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
static inline float ToFloat(float f) { return f; }
// Round to nearest even; NaN stays NaN.
static inline uint16_t ToBf16(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline void Assign(float& out, float f) { out = f; }
static inline void Assign(uint16_t& out, float f) { out = ToBf16(f); }

static inline Vec LoadAs(const float* p) { return Load(p); }
static inline Vec LoadAs(const uint16_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#else
  const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Vec>(_mm_unpacklo_epi16(_mm_setzero_si128(), words));
#endif
}

// Loads 2 * kLanes numbers as two vectors. For float both are in order. For bf16 the first vector
// gets the numbers with even indices and the second those with odd ones, at one instruction each.
static inline void LoadPair(const float* p, Vec& a, Vec& b) {
  a = Load(p);
  b = Load(p + kLanes);
}
static inline void LoadPair(const uint16_t* p, Vec& a, Vec& b) {
  UintVec words;
  __builtin_memcpy(&words, p, sizeof words);
  a = reinterpret_cast<Vec>(words << 16);
  b = reinterpret_cast<Vec>(words & 0xffff0000u);
}

static inline void StoreAs(float* p, Vec v) { Store(p, v); }
static inline void StoreAs(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  __m256bh b = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  __builtin_memcpy(p, &b, 32);
#else
  const UintVec bits = reinterpret_cast<UintVec>(v);
  const UintVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UintVec quiet = (bits >> 16) | 0x40;
  const UintVec words = v == v ? rounded : quiet;
#if defined(__AVX512F__)
  const __m256i packed = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(words));
  __builtin_memcpy(p, &packed, 32);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(reinterpret_cast<__m256i>(words), _mm256_setzero_si256()), 0x08);
  __builtin_memcpy(p, &packed, 16);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(words[i]);
#endif
#endif
}

static inline float SumOf(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const __m256 y = reinterpret_cast<__m256>(v);
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
static inline float LargestOf(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const __m256 y = reinterpret_cast<__m256>(v);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
  float s = v[0];
  for (int i = 1; i < kLanes; ++i) s = v[i] > s ? v[i] : s;
  return s;
#endif
}

// The sums of kLanes vectors as one vector.
static inline Vec SumsOf(const Vec (&v)[kLanes]) {
#if defined(__AVX512F__)
  // Within each 128 bits, sums of pairs and then of four; then over the four quarters.
  __m512 four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto pair = [&](int j) {
      const __m512 a = reinterpret_cast<__m512>(v[4 * i + j]),
                   b = reinterpret_cast<__m512>(v[4 * i + j + 1]);
      return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const __m512d low = reinterpret_cast<__m512d>(pair(0)),
                  high = reinterpret_cast<__m512d>(pair(2));
    four[i] = _mm512_add_ps(reinterpret_cast<__m512>(_mm512_unpacklo_pd(low, high)),
                            reinterpret_cast<__m512>(_mm512_unpackhi_pd(low, high)));
  }
  const auto join = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return reinterpret_cast<Vec>(join(join(four[0], four[1]), join(four[2], four[3])));
#elif defined(__AVX2__)
  const auto add = [&](int i, int j) {
    return _mm256_hadd_ps(reinterpret_cast<__m256>(v[i]), reinterpret_cast<__m256>(v[j]));
  };
  const __m256 low = _mm256_hadd_ps(add(0, 1), add(2, 3)),
               high = _mm256_hadd_ps(add(4, 5), add(6, 7));
  const __m128 a = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(high), _mm256_extractf128_ps(high, 1));
  return reinterpret_cast<Vec>(_mm256_set_m128(b, a));
#else
  Vec sums;
  for (int i = 0; i < kLanes; ++i) sums[i] = SumOf(v[i]);
  return sums;
#endif
}

// 2^f for f in [-0.5, 0.5], with a relative error of 1e-7, or of 3e-6 if kForBf16.
template <bool kForBf16>
static inline Vec Exp2OfFraction(Vec f) {
  if (kForBf16) {
    Vec p = Splat(9.5828531e-3f);
    p = p * f + Splat(5.5906426e-2f);
    p = p * f + Splat(2.4024099e-1f);
    p = p * f + Splat(6.9312419e-1f);
    return p * f + Splat(1.0f);
  }
  Vec p = Splat(1.3264727e-3f);
  p = p * f + Splat(9.6715129e-3f);
  p = p * f + Splat(5.5507337e-2f);
  p = p * f + Splat(2.4022242e-1f);
  p = p * f + Splat(6.9314698e-1f);
  return p * f + Splat(1.0f);
}

// 2^x for x <= 0 and small positive x. 0 for every x < -150.
template <bool kForBf16 = false>
static inline Vec Exp2(Vec x) {
#ifdef __AVX512F__
  const Vec n = reinterpret_cast<Vec>(_mm512_roundscale_ps(reinterpret_cast<__m512>(x), 0));
  const Vec p = Exp2OfFraction<kForBf16>(x - n);
  return reinterpret_cast<Vec>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // 1.5 * 2^23 + 127: the last bits of the sum are the exponent of 2^n, which is 0 for n = -127.
  const Vec magic = Splat(12583039.0f), low = MaxOf(x, Splat(-127.0f)), shifted = low + magic;
  const Vec power = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(shifted) << 23);
  return Exp2OfFraction<kForBf16>(low - (shifted - magic)) * power;
#endif
}

static inline float Exp2(float x) { return Exp2(Splat(x))[0]; }

#if defined(__AVX512F__)
using WordVec = __m512i;
// 16 x 16 transposition of 32-bit words: word j of in[i] becomes word i of in[j].
static inline void Transpose(__m512i (&in)[16]) {
  __m512i t[16], u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    in[0 + i] = _mm512_shuffle_i32x4(a, b, 0x88);
    in[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
    in[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    in[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}
// Transposes, and writes the 16 vectors one after the other.
static inline void TransposeTo(__m512i (&in)[16], uint16_t* out) {
  Transpose(in);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, in[i]);
}
#elif defined(__AVX2__)
using WordVec = __m256i;
// 8 x 8 transposition of 32-bit words: word j of in[i] becomes word i of in[j].
static inline void Transpose(__m256i (&in)[8]) {
  __m256i t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    in[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
    in[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
  }
}
#else
using WordVec = __m128i;
// 4 x 4 transposition of 32-bit words: word j of in[i] becomes word i of in[j].
static inline void Transpose(__m128i (&in)[4]) {
  const __m128i a = _mm_unpacklo_epi32(in[0], in[1]), b = _mm_unpackhi_epi32(in[0], in[1]);
  const __m128i c = _mm_unpacklo_epi32(in[2], in[3]), d = _mm_unpackhi_epi32(in[2], in[3]);
  in[0] = _mm_unpacklo_epi64(a, c);
  in[1] = _mm_unpackhi_epi64(a, c);
  in[2] = _mm_unpacklo_epi64(b, d);
  in[3] = _mm_unpackhi_epi64(b, d);
}
#endif

// Calls f with a null pointer to the element type: uint16_t for bf16, else float.
template <typename F>
static inline void WithType(DType dtype, F f) {
  if (dtype == DType::kBF16) {
    f(static_cast<uint16_t*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

template <typename P>
struct ElementOf;
template <typename E>
struct ElementOf<E*> {
  using type = E;
};

}  // namespace apb::kernels::APB_ISA
