// Matrix products of tiles, C[m, n] (+)= A[m, k] B[k, n], with A in rows and B packed in panels of
// 16 columns. FloatTiles work on every CPU. The bf16 tiles keep pairs of k together, as vdpbf16ps
// and AMX read them; their m is a multiple of 16. n and k are multiples of 32.
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace apb::kernels::APB_ISA {

struct FloatTiles {
  using Elem = float;
  static constexpr int kPair = 1;
  static constexpr int kVecs = 16 / kLanes;  // vectors in a row of a panel
  // Panels and rows of C that fit in the registers beside a row of B and a number of A.
#if defined(__AVX512F__)
  static constexpr int kPanels = 2, kRows = 12;
#elif defined(__AVX2__)
  static constexpr int kPanels = 1, kRows = 6;
#else
  static constexpr int kPanels = 1, kRows = 2;
#endif
  // For attention: keys of a packed block, rows of a tile of scores, rows of a unit. A tile of
  // scores and a block fit in the caches.
  static constexpr int kBlockKeys = 128, kTileRows = 48, kUnitRows = 240;

  static void Begin() {}
  static void End() {}
  static Elem From(float x) { return x; }
  static void StoreProbabilities(Elem* p, Vec a, Vec b) {
    Store(p, a);
    Store(p + kLanes, b);
  }

  // Any m; n a multiple of 16; k > 0.
  static void Gemm(int m, const Elem* a, int64_t lda, const Elem* b, int64_t panel, int n, int k,
                   float* c, int64_t ldc, bool accumulate) {
    int j = 0;
    for (; j + 16 * kPanels <= n; j += 16 * kPanels)
      Columns<kPanels>(m, a, lda, b + j / 16 * panel, panel, k, c + j, ldc, accumulate);
    for (; j < n; j += 16)
      Columns<1>(m, a, lda, b + j / 16 * panel, panel, k, c + j, ldc, accumulate);
  }

  // Computes all rows of one or two panels.
  template <int kCount>
  static void Columns(int m, const Elem* a, int64_t lda, const Elem* b, int64_t panel, int k,
                      float* c, int64_t ldc, bool accumulate) {
    int i = 0;
    for (; i + kRows <= m; i += kRows)
      Some<kRows, kCount>(a + i * lda, lda, b, panel, k, c + i * ldc, ldc, accumulate);
    Rest<kRows - 1, kCount>(m - i, a + i * lda, lda, b, panel, k, c + i * ldc, ldc, accumulate);
  }

 private:
  template <int kMost, int kCount>
  static void Rest(int rows, const Elem* a, int64_t lda, const Elem* b, int64_t panel, int k,
                   float* c, int64_t ldc, bool accumulate) {
    if (rows == kMost) return Some<kMost, kCount>(a, lda, b, panel, k, c, ldc, accumulate);
    if constexpr (kMost > 1) Rest<kMost - 1, kCount>(rows, a, lda, b, panel, k, c, ldc, accumulate);
  }

  template <int kHeight, int kCount>
  static void Some(const Elem* a, int64_t lda, const Elem* b, int64_t panel, int k, float* c,
                   int64_t ldc, bool accumulate) {
    if (accumulate) return Block<kHeight, kCount, true>(a, lda, b, panel, k, c, ldc);
    Block<kHeight, kCount, false>(a, lda, b, panel, k, c, ldc);
  }

  // Not inlined: GCC 12 then keeps every sum in a register.
  template <int kHeight, int kCount, bool kAccumulate>
  __attribute__((noinline)) static void Block(const Elem* a, int64_t lda, const Elem* b,
                                              int64_t panel, int k, float* c, int64_t ldc) {
    constexpr int kWidth = kCount * kVecs;
    const auto column = [](int v) { return v * kLanes; };
    Vec acc[kHeight][kWidth];
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v)
        acc[r][v] = kAccumulate ? Load(c + r * ldc + column(v)) : Vec{};
    }
    int p = 0;
    do {
      Vec y[kWidth];
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v)
        y[v] = Load(b + v / kVecs * panel + p * 16 + column(v % kVecs));
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r) {
        const Vec x = Splat(a[r * lda + p]);
#pragma GCC unroll 8
        for (int v = 0; v < kWidth; ++v) MultiplyAdd(acc[r][v], x, y[v]);
      }
    } while (++p < k);
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) Store(c + r * ldc + column(v), acc[r][v]);
    }
  }
};

#ifdef __AVX512BF16__
struct Bf16Tiles {
  using Elem = uint16_t;
  static constexpr int kPair = 2;
  static constexpr int kBlockKeys = 256, kTileRows = 32, kUnitRows = 256;
  static void StoreProbabilities(Elem* p, Vec a, Vec b) {
    __m512bh packed = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a));
    __builtin_memcpy(p, &packed, 64);
  }
};

struct Avx512Tiles : Bf16Tiles {
  static void Begin() {}
  static void End() {}
  static void Gemm(int m, const Elem* a, int64_t lda, const Elem* b, int64_t panel, int n, int k,
                   float* c, int64_t ldc, bool accumulate) {
    for (int j = 0; j < n; j += 32) {
      const Elem* b0 = b + j / 16 * panel;
      const Elem* b1 = b0 + panel;
      for (int i = 0; i < m; i += 8) {
        __m512 acc[8][2];
        for (int r = 0; r < 8; ++r) {
          acc[r][0] = accumulate ? _mm512_loadu_ps(c + (i + r) * ldc + j) : _mm512_setzero_ps();
          acc[r][1] =
              accumulate ? _mm512_loadu_ps(c + (i + r) * ldc + j + 16) : _mm512_setzero_ps();
        }
        for (int p = 0; p < k; p += 2) {
          __m512bh y0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b0 + p * 16));
          __m512bh y1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b1 + p * 16));
          for (int r = 0; r < 8; ++r) {
            int32_t pair;
            __builtin_memcpy(&pair, a + (i + r) * lda + p, 4);
            __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, y0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, y1);
          }
        }
        for (int r = 0; r < 8; ++r) {
          _mm512_storeu_ps(c + (i + r) * ldc + j, acc[r][0]);
          _mm512_storeu_ps(c + (i + r) * ldc + j + 16, acc[r][1]);
        }
      }
    }
  }
};
#endif

#ifdef __AMX_BF16__
struct AmxTiles : Bf16Tiles {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  // Tiles 0-3 hold C (2 x 2), 4-5 A, 6-7 B.
  static void Begin() {
    // Static, because the intrinsic declares only its first bytes as read: the compiler would drop
    // the rest of a local object.
    static const Config config;
    _tile_loadconfig(&config);
  }
  static void End() { _tile_release(); }

  static void Gemm(int m, const Elem* a, int64_t lda, const Elem* b, int64_t panel, int n, int k,
                   float* c, int64_t ldc, bool accumulate) {
    int i = 0;
    for (; i + 32 <= m; i += 32)
      Block<2>(a + i * lda, lda, b, panel, n, k, c + i * ldc, ldc, accumulate);
    if (i < m) Block<1>(a + i * lda, lda, b, panel, n, k, c + i * ldc, ldc, accumulate);
  }

 private:
  template <int kTiles>
  static void Block(const Elem* a, int64_t lda, const Elem* b, int64_t panel, int n, int k,
                    float* c, int64_t ldc, bool accumulate) {
    for (int j = 0; j < n; j += 32) {
      const Elem* b0 = b + j / 16 * panel;
      const Elem* b1 = b0 + panel;
      float* c0 = c + j;
      float* c1 = c0 + 16 * ldc;
      if (accumulate) {
        _tile_loadd(0, c0, ldc * 4);
        _tile_loadd(1, c0 + 16, ldc * 4);
        if (kTiles == 2) _tile_loadd(2, c1, ldc * 4);
        if (kTiles == 2) _tile_loadd(3, c1 + 16, ldc * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        if (kTiles == 2) _tile_zero(2);
        if (kTiles == 2) _tile_zero(3);
      }
      for (int p = 0; p < k; p += 32) {
        _tile_loadd(4, a + p, lda * 2);
        _tile_loadd(6, b0 + p * 16, 64);
        _tile_loadd(7, b1 + p * 16, 64);
        if (kTiles == 2) _tile_loadd(5, a + 16 * lda + p, lda * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (kTiles == 2) _tile_dpbf16ps(2, 5, 6);
        if (kTiles == 2) _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, c0, ldc * 4);
      _tile_stored(1, c0 + 16, ldc * 4);
      if (kTiles == 2) _tile_stored(2, c1, ldc * 4);
      if (kTiles == 2) _tile_stored(3, c1 + 16, ldc * 4);
    }
  }
};
#endif

// The tiles for products of bf16 operands.
#if defined(__AMX_BF16__)
using TilesForBf16 = AmxTiles;
#elif defined(__AVX512BF16__)
using TilesForBf16 = Avx512Tiles;
#else
using TilesForBf16 = FloatTiles;  // bf16 operands are widened when they are packed
#endif

}  // namespace apb::kernels::APB_ISA
