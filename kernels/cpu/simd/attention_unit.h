// A unit of rows, which one thread takes over all keys: their queries, their softmax states, and
// their outputs so far.
#pragma once

#include "kernels/cpu/simd/packed_keys.h"
#include "kernels/cpu/simd/softmax_state.h"

namespace apb::kernels::APB_ISA {

// Up to kUnitRows rows of one KV head.
template <typename Tiles>
struct AttentionUnit {
  using Elem = typename Tiles::Elem;
  static constexpr int kBlockKeys = Tiles::kBlockKeys, kTileRows = Tiles::kTileRows;
  static constexpr int kUnitRows = Tiles::kUnitRows;
  static constexpr int kScoreStride = kBlockKeys + 16;  // spreads the rows over the cache sets
  // Float weights overwrite their scores.
  static constexpr bool kInPlace = sizeof(Elem) == 4;
  static constexpr int kWeightStride = kInPlace ? kScoreStride : kBlockKeys;

  int rows = 0, d = 0, dp = 0;
  float scale_log2 = 0;  // scale * log2(e)
  Elem* q;               // [kUnitRows, dp]
  float* acc;            // [kUnitRows, dp]
  float* scores;         // [kTileRows, kScoreStride]
  Elem* weights;         // [kTileRows, kWeightStride]
  // The softmax states, row_max in units of log2. Vectors of rows may reach up to 16 rows past the
  // last tile.
  float row_max[kUnitRows + 16];
  float row_sum[kUnitRows + 16];
  int32_t position[kUnitRows];

  static int64_t Bytes(int dp) {
    const int64_t weights = kInPlace ? 0 : kTileRows * kWeightStride * sizeof(Elem);
    return kUnitRows * dp * static_cast<int64_t>(sizeof(Elem) + 4) + weights +
           kTileRows * kScoreStride * 4;
  }
  // Takes Bytes(dp) bytes at `memory`, aligned to 64; dp = head_dim rounded up to 32.
  void Place(char* memory, int head_dim) {
    d = head_dim;
    dp = static_cast<int>(RoundUp(d, 32));
    acc = reinterpret_cast<float*>(memory);
    scores = acc + kUnitRows * dp;
    q = reinterpret_cast<Elem*>(scores + kTileRows * kScoreStride);
    weights = kInPlace ? reinterpret_cast<Elem*>(scores) : q + kUnitRows * dp;
  }
  void Start(int row_count) {
    rows = row_count;
    for (int r = 0; r < kUnitRows + 16; ++r) {
      row_max[r] = kMasked;
      row_sum[r] = 0;
    }
    for (int r = rows; r < kUnitRows; ++r) position[r] = INT32_MIN;
    __builtin_memset(acc, 0, sizeof(float) * kUnitRows * dp);
    for (int r = rows; r < Min(kUnitRows, RoundUp(rows, 16)); ++r)
      __builtin_memset(q + static_cast<int64_t>(r) * dp, 0, sizeof(Elem) * dp);
  }
  template <typename T>
  void SetRow(int row, const T* source, int32_t pos) {
    Elem* out = q + static_cast<int64_t>(row) * dp;
    for (int c = 0; c < dp; ++c) {
      if constexpr (sizeof(T) == sizeof(Elem)) {
        out[c] = c < d ? source[c] : Elem{};
      } else {
        out[c] = c < d ? Tiles::From(ToFloat(source[c])) : Elem{};
      }
    }
    position[row] = pos;
  }

  // Adds a block of keys to all rows. see_all: every row sees every key; otherwise by position.
  void Add(const PackedBlock<Tiles>& block, bool see_all) {
    for (int begin = 0; begin < rows; begin += kTileRows)
      AddToTile(block, see_all, begin, static_cast<int>(Min(kTileRows, rows - begin)));
  }

  float LogSumExp(int row) const { return StateOf(row).LogSumExp(kLn2); }
  template <typename O>
  void WriteRow(int row, O* out) const {
    const float* o = acc + static_cast<int64_t>(row) * dp;
    const float normalizer = StateOf(row).Normalizer();
    int c = 0;
    for (; c + kLanes <= d; c += kLanes) StoreAs(out + c, Load(o + c) * Splat(normalizer));
    for (; c < d; ++c) Assign(out[c], o[c] * normalizer);
  }

 private:
  SoftmaxState<float> StateOf(int row) const { return {row_max[row], row_sum[row]}; }

  // The number of keys, rounded up to 32, that rows up to position `last` may see: none of the keys
  // behind them is visible.
  static int SeenKeys(const int32_t* key_positions, int32_t last, int n) {
    for (; n > 32; n -= 32) {
      int seen = 0;
      for (int j = n - 32; j < n; ++j) seen |= key_positions[j] <= last;
      if (seen != 0) break;
    }
    return n;
  }

  void AddToTile(const PackedBlock<Tiles>& block, bool see_all, int begin, int count) {
    const int n = static_cast<int>(RoundUp(block.keys, 32));
    int32_t first = INT32_MAX, last = INT32_MIN;
    for (int r = begin; r < begin + count; ++r) {
      first = position[r] < first ? position[r] : first;
      last = position[r] > last ? position[r] : last;
    }
    if (!see_all && last < block.low) return;
    const bool whole = block.keys == n && (see_all || first >= block.high);
    const int padded = static_cast<int>(RoundUp(count, 16)), m = kInPlace ? count : padded;
    const int seen = see_all || last >= block.high ? n : SeenKeys(block.positions, last, n);
    const int depth = kInPlace ? d : dp;
    Tiles::Gemm(m, q + static_cast<int64_t>(begin) * dp, dp, block.k, static_cast<int64_t>(dp) * 16,
                seen, depth, scores, kScoreStride, false);
    // Two passes over the rows: no row waits for the maximum of another one.
    alignas(64) float highest[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      highest[r] = kMasked;
      if (r >= count) continue;
      highest[r] = Highest(r, seen, whole ? nullptr : block.positions,
                           see_all ? kSeesAll : position[begin + r]);
    }
    alignas(64) float shift[kTileRows];
    for (int r = 0; r < padded; r += kLanes) RaiseMaxima(begin + r, highest + r, shift + r);
    for (int r = 0; r < count; ++r) row_sum[begin + r] += Weigh(r, seen, shift[r]);
    for (int r = count; r < m; ++r)
      __builtin_memset(weights + r * kWeightStride, 0, sizeof(Elem) * seen);
    Tiles::Gemm(m, weights, kWeightStride, block.v, static_cast<int64_t>(kBlockKeys) * 16, dp, seen,
                acc + static_cast<int64_t>(begin) * dp, dp, true);
  }

  // Returns the highest score of a row. Sets the scores of keys that it does not see to kMasked.
  float Highest(int r, int n, const int32_t* positions, int32_t row_position) {
    float* s = scores + r * kScoreStride;
    Vec top0 = Splat(kMasked), top1 = top0;
    if (positions != nullptr) {
      const IntVec limit = IntVec{} + row_position;
      for (int j = 0; j < n; j += kLanes) {
        const Vec x = LoadInts(positions + j) <= limit ? Load(s + j) : Splat(kMasked);
        Store(s + j, x);
        top0 = MaxOf(top0, x);
      }
    } else {
      for (int j = 0; j < n; j += 2 * kLanes) {
        top0 = MaxOf(top0, Load(s + j));
        top1 = MaxOf(top1, Load(s + j + kLanes));
      }
    }
    return LargestOf(MaxOf(top0, top1));
  }

  // Raises row_max of kLanes rows and rescales their row_sum and acc. Writes the scores to which
  // the weights are relative now to `shift`.
  void RaiseMaxima(int row, const float* highest, float* shift) {
    SoftmaxState<Vec> states{Load(row_max + row), Load(row_sum + row)};
    const Vec rescale = states.RaiseMax(Load(highest), scale_log2);
    Store(row_max + row, states.row_max);
    Store(row_sum + row, states.row_sum);
    Store(shift, states.Reference());
    for (int r = 0; r < kLanes && row + r < rows; ++r) {
      if (rescale[r] == 1.0f) continue;
      float* o = acc + static_cast<int64_t>(row + r) * dp;
      for (int c = 0; c < dp; c += kLanes) Store(o + c, Load(o + c) * Splat(rescale[r]));
    }
  }

  // Turns a row's scores into weights; returns their sum.
  float Weigh(int r, int n, float shift) {
    const float* s = scores + r * kScoreStride;
    Elem* p = weights + r * kWeightStride;
    Vec sum0{}, sum1{};
    const Vec factor = Splat(scale_log2), minus = Splat(shift);
    for (int j = 0; j < n; j += 2 * kLanes) {
      const Vec a = Exp2<Tiles::kPair == 2>(Load(s + j) * factor - minus);
      const Vec b = Exp2<Tiles::kPair == 2>(Load(s + j + kLanes) * factor - minus);
      sum0 += a;
      sum1 += b;
      Tiles::StoreProbabilities(p + j, a, b);
    }
    return SumOf(sum0 + sum1);
  }
};

}  // namespace apb::kernels::APB_ISA
