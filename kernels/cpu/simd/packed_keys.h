// Keys and values of attention, packed in blocks as right operands of products. The tiles of all
// rows read the same blocks.
#pragma once

#include "kernels/cpu/simd/tile_math.h"

namespace apb::kernels::APB_ISA {

constexpr int32_t kSeesAll = INT32_MAX - 1;
constexpr int32_t kPadding = INT32_MAX;  // position of key slots that hold no key

template <typename Tiles>
struct PackedBlock {
  static constexpr int kKeys = Tiles::kBlockKeys;
  typename Tiles::Elem* k;  // [keys / 16][dp / pair][16][pair]
  typename Tiles::Elem* v;  // [dp / 16][keys / pair][16][pair]
  int32_t positions[kKeys];
  int32_t low, high;  // the lowest and highest position of the real keys
  int keys;           // number of real keys; the others are padding

  // Elements of k, and of v.
  static int64_t Elements(int dp) { return static_cast<int64_t>(kKeys) * dp; }

  // Sets the positions of the `count` real keys. Null if positions will not be compared.
  void SetPositions(const int32_t* real, int count) {
    keys = count;
    low = INT32_MAX;
    high = INT32_MIN;
    for (int i = 0; i < kKeys; ++i) {
      const int32_t p = i < count ? (real != nullptr ? real[i] : 0) : kPadding;
      positions[i] = p;
      if (i >= count) continue;
      low = p < low ? p : low;
      high = p > high ? p : high;
    }
  }
};

#ifdef __AVX512BF16__
// Packs the keys of bf16 rows whose head dimension d is a multiple of 32.
static inline void PackKeysFast(const uint16_t* const* rows, int keys, int d, uint16_t* out) {
  for (int j = 0; j < keys; j += 16) {
    for (int c = 0; c < d; c += 32) {
      __m512i in[16];
      for (int r = 0; r < 16; ++r) {
        in[r] = j + r < keys ? _mm512_loadu_si512(rows[j + r] + c) : _mm512_setzero_si512();
      }
      TransposeTo(in, out + static_cast<int64_t>(j / 16) * d * 16 + c * 16);
    }
  }
}
// Packs the values of such rows. A panel has 16 dimensions of all keys; panels are `panel` elements
// apart.
static inline void PackValuesFast(const uint16_t* const* rows, int keys, int padded, int d,
                                  int64_t panel, uint16_t* out) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high =
      _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                       22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  for (int r = 0; r < padded; r += 2) {
    for (int c = 0; c < d; c += 32) {
      __m512i a = r < keys ? _mm512_loadu_si512(rows[r] + c) : _mm512_setzero_si512();
      __m512i b = r + 1 < keys ? _mm512_loadu_si512(rows[r + 1] + c) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + c / 16 * panel + r * 16, _mm512_permutex2var_epi16(a, low, b));
      _mm512_storeu_si512(out + (c / 16 + 1) * panel + r * 16,
                          _mm512_permutex2var_epi16(a, high, b));
    }
  }
}
#endif

// Packs the keys of f32 or bf16 rows as floats, kLanes rows at a time; d is a multiple of kLanes.
template <typename T>
static inline void PackFloatKeys(const T* const* rows, int keys, int padded, int d, int dp,
                                 float* out) {
  for (int j = 0; j < padded; j += kLanes) {
    float* panel = out + static_cast<int64_t>(j / 16) * dp * 16 + j % 16;
    for (int c = 0; c < d; c += kLanes) {
      WordVec in[kLanes];
      for (int r = 0; r < kLanes; ++r)
        in[r] = reinterpret_cast<WordVec>(j + r < keys ? LoadAs(rows[j + r] + c) : Vec{});
      Transpose(in);
      for (int r = 0; r < kLanes; ++r)
        Store(panel + static_cast<int64_t>(c + r) * 16, reinterpret_cast<Vec>(in[r]));
    }
    for (int c = d; c < dp; ++c) Store(panel + static_cast<int64_t>(c) * 16, Vec{});
  }
}
template <typename T>
static inline void PackFloatValues(const T* const* rows, int keys, int padded, int d, int dp,
                                   int64_t panel, float* out) {
  for (int r = 0; r < padded; ++r) {
    for (int c = 0; c < dp; c += kLanes)
      Store(out + c / 16 * panel + r * 16 + c % 16,
            r < keys && c < d ? LoadAs(rows[r] + c) : Vec{});
  }
}

// Packs `keys` rows of keys and values; k_rows[i] and v_rows[i] point at d elements of type T.
// Padding keys and dimensions become zero.
template <typename Tiles, typename T>
static void PackRows(const T* const* k_rows, const T* const* v_rows, int keys, int d, int dp,
                     PackedBlock<Tiles>& block) {
  using Elem = typename Tiles::Elem;
  constexpr int kPair = Tiles::kPair, kKeys = Tiles::kBlockKeys;
  const int padded = static_cast<int>(RoundUp(keys, 32));
#ifdef __AVX512BF16__
  if constexpr (kPair == 2 && sizeof(T) == 2) {
    if (d == dp) {
      PackKeysFast(k_rows, keys, d, block.k);
      if (padded - keys >= 16)
        __builtin_memset(block.k + static_cast<int64_t>(padded - 16) * d, 0, 32 * d);
      PackValuesFast(v_rows, keys, padded, d, kKeys * 16, block.v);
      return;
    }
  }
#endif
  if constexpr (kPair == 1) {
    if (d % kLanes == 0) {
      PackFloatKeys(k_rows, keys, padded, d, dp, block.k);
      PackFloatValues(v_rows, keys, padded, d, dp, kKeys * 16, block.v);
      return;
    }
  }
  for (int j = 0; j < padded; ++j) {
    Elem* k_out = block.k + static_cast<int64_t>(j / 16) * dp * 16 + (j % 16) * kPair;
    Elem* v_out = block.v + static_cast<int64_t>(j / kPair) * 16 * kPair + j % kPair;
    for (int c = 0; c < dp; ++c) {
      const bool real = j < keys && c < d;
      Elem key{}, value{};
      if (real) {
        if constexpr (sizeof(T) == sizeof(Elem)) {
          key = k_rows[j][c];
          value = v_rows[j][c];
        } else {
          key = Tiles::From(ToFloat(k_rows[j][c]));
          value = Tiles::From(ToFloat(v_rows[j][c]));
        }
      }
      k_out[static_cast<int64_t>(c / kPair) * 16 * kPair + c % kPair] = key;
      v_out[static_cast<int64_t>(c / 16) * kKeys * 16 + (c % 16) * kPair] = value;
    }
  }
}

}  // namespace apb::kernels::APB_ISA
