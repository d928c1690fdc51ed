// Decode over the paged cache for a few rows (query heads of a group times new tokens). Bound by
// reading the cache: keys and values are used in place and read once for every three or four rows.
#pragma once

#include "kernels/cpu/simd/paged_keys.h"
#include "kernels/cpu/simd/softmax_state.h"

namespace apb::kernels::APB_ISA {

// Keys of a chunk. The scores of all rows for a chunk stay in the L1 cache.
constexpr int kChunkKeys = 128;

class FewRows {
 public:
  static constexpr int kMostRows = 12;
  static constexpr int kStep = 2 * kLanes;  // of the head dimension
  static constexpr int64_t kMaxDim = 256;

  static bool Takes(int64_t rows, int64_t d) {
    return rows <= kMostRows && d % kStep == 0 && d <= kMaxDim;
  }

  template <typename T>
  void Run(const PagedAttentionArgs& args, const PagedTask& task, float* partials, int group) {
    const PagedSequence& sequence = args.sequences[task.sequence];
    const PagedRowsOf<T> keys(args.k_cache, sequence, task.head);
    const PagedRowsOf<T> values(args.v_cache, sequence, task.head);
    Start<T>(args, task, group);
    const float factor = args.scale * kLog2e;
    const T* key_rows[kChunkKeys];
    const T* value_rows[kChunkKeys];
    int count = static_cast<int>(Min(kChunkKeys, task.slot_end - task.slot_begin));
    keys.List(task.slot_begin, count, key_rows);
    for (int64_t s = task.slot_begin; s < task.slot_end; s += kChunkKeys) {
      values.List(s, count, value_rows);
      for (int r = 0; r < rows_; r += kTogether) {
        const RowsAhead<T> next = {value_rows, r == 0 ? count : 0};
        Some(Min(kTogether, rows_ - r),
             [&]<int kRows>() { Score<kRows>(key_rows, count, r, next); });
      }
      Mask(sequence, s, count);
      for (int r = 0; r < rows_; ++r) Weigh(r, count, factor);
      const int next_count = static_cast<int>(Max(0, Min(kChunkKeys, task.slot_end - s - count)));
      keys.List(s + count, next_count, key_rows);
      for (int r = 0; r < rows_; r += kTogether) {
        const RowsAhead<T> next = {key_rows, r == 0 ? next_count : 0};
        Some(Min(kTogether, rows_ - r),
             [&]<int kRows>() { AddValues<kRows>(value_rows, count, r, next); });
      }
      count = next_count;
    }
    for (int r = 0; r < rows_; ++r) Write<T>(r, partials + task.partial + r * (d_ + 1));
  }

 private:
  // Rows whose sums fit in the registers together.
#if defined(__AVX512F__)
  static constexpr int kTogether = 4;
#else
  static constexpr int kTogether = 3;
#endif
  // Keys whose values are added in one pass over the dimensions.
  static constexpr int kBatch = 16;

  // The cache rows that are used next. They are prefetched now, a few at a time between the
  // arithmetic, because a burst would stall the core.
  template <typename T>
  struct RowsAhead {
    const T* const* rows;
    int count;

    // Inlined by force: GCC 12 drops calls of a function that only prefetches.
    __attribute__((always_inline)) void Fetch(int i, int d) const {
      if (i >= count) return;
      const char* line = reinterpret_cast<const char*>(rows[i]);
      const char* end = line + d * static_cast<int64_t>(sizeof(T));
      for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
    }
  };

  template <typename F>
  static void Some(int64_t rows, F f) {
    if constexpr (kTogether == 4) {
      if (rows == 4) return f.template operator()<4>();
    }
    if (rows == 3) return f.template operator()<3>();
    if (rows == 2) return f.template operator()<2>();
    f.template operator()<1>();
  }

  template <typename T>
  void Start(const PagedAttentionArgs& args, const PagedTask& task, int group) {
    const PagedRows& tokens = args.rows[task.sequence];
    d_ = static_cast<int>(args.q.shape[2]);
    rows_ = static_cast<int>(tokens.count * group);
    for (int r = 0; r < rows_; ++r) {
      const int64_t t = tokens.begin + r / group, head = task.head * group + r % group;
      const T* q =
          static_cast<const T*>(args.q.data) + t * args.q.stride[0] + head * args.q.stride[1];
      for (int c = 0; c < d_; c += kStep) {
        Vec a, b;
        LoadPair(q + c, a, b);
        Store(q_[r] + c, a);
        Store(q_[r] + c + kLanes, b);
      }
      if constexpr (kPairs<T>) __builtin_memcpy(pairs_[r], q, sizeof(T) * d_);
      __builtin_memset(acc_[r], 0, sizeof(float) * d_);
      position_[r] = static_cast<const int32_t*>(args.q_positions.data)[t];
      state_[r] = {};
    }
  }

  // Computes the scores of the chunk's keys for kRows rows from `first` on, kLanes keys at a time.
  // The last key fills up the last vector. Prefetches `next`.
  template <int kRows, typename T>
  void Score(const T* const* keys, int count, int first, const RowsAhead<T>& next) {
    for (int j = 0; j < count; j += kLanes) {
      Vec sums[kRows][kLanes];
      for (int i = j; i < j + kLanes; i += 4) {
        const T* rows[4];
        for (int k = 0; k < 4; ++k) rows[k] = keys[i + k < count ? i + k : count - 1];
        for (int k = 0; k < 4; ++k) next.Fetch(i + k, d_);
        ScoreFour<kRows>(rows, first, i - j, sums);
      }
      for (int r = 0; r < kRows; ++r) Store(scores_[first + r] + j, SumsOf(sums[r]));
    }
  }
  template <int kRows, typename T>
  __attribute__((noinline)) void ScoreFour(const T* const (&rows)[4], int first, int at,
                                           Vec (&sums)[kRows][kLanes]) {
    Vec acc[kRows][4];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) acc[r][k] = Vec{};
    }
    const float* q = q_[first];
    for (int c = 0; c < d_; c += kStep) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        if constexpr (kPairs<T>) {
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) AddPairs(acc[r][k], rows[k] + c, pairs_[first + r] + c);
          continue;
        }
        Vec x, y;
        LoadPair(rows[k] + c, x, y);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          MultiplyAdd(acc[r][k], x, q + r * kMaxDim + c);
          MultiplyAdd(acc[r][k], y, q + r * kMaxDim + c + kLanes);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[r][at + k] = acc[r][k];
    }
  }

  // Whether scores are computed with dot products of pairs of T, without converting keys to floats.
#if defined(__AVX512BF16__)
  template <typename T>
  static constexpr bool kPairs = sizeof(T) == 2;
  __attribute__((always_inline)) static void AddPairs(Vec& acc, const uint16_t* a,
                                                      const uint16_t* b) {
    acc = reinterpret_cast<Vec>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(_mm512_loadu_si512(a)),
        reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))));
  }
#else
  template <typename T>
  static constexpr bool kPairs = false;
  static void AddPairs(Vec&, const void*, const void*) {}
#endif

  // Sets the scores of keys that rows do not see to kMasked, and those behind the last key up to a
  // whole vector.
  void Mask(const PagedSequence& sequence, int64_t slot, int count) {
    const int padded = static_cast<int>(RoundUp(count, kStep));
    for (int r = 0; r < rows_; ++r) {
      for (int j = count; j < padded; ++j) scores_[r][j] = kMasked;
    }
    const int from = static_cast<int>(Max(0, sequence.causal_begin - slot));
    for (int j = from; j < count; ++j) {
      const int32_t at = sequence.slot_positions[slot + j - sequence.causal_begin];
      for (int r = 0; r < rows_; ++r) {
        if (at > position_[r]) scores_[r][j] = kMasked;
      }
    }
  }

  // Turns a row's scores into weights, and updates its softmax state.
  void Weigh(int r, int count, float factor) {
    float* s = scores_[r];
    Vec top0 = Splat(kMasked), top1 = top0;
    for (int j = 0; j < count; j += kStep) {
      top0 = MaxOf(top0, Load(s + j));
      top1 = MaxOf(top1, Load(s + j + kLanes));
    }
    const float rescale = state_[r].RaiseMax(LargestOf(MaxOf(top0, top1)), factor);
    const float shift = state_[r].Reference();
    Vec sum0{}, sum1{};
    for (int j = 0; j < count; j += kStep) {
      const Vec a = Exp2(Load(s + j) * Splat(factor) - Splat(shift));
      const Vec b = Exp2(Load(s + j + kLanes) * Splat(factor) - Splat(shift));
      sum0 += a;
      sum1 += b;
      Store(s + j, a);
      Store(s + j + kLanes, b);
    }
    state_[r].row_sum += SumOf(sum0 + sum1);
    if (rescale == 1.0f) return;
    for (int c = 0; c < d_; c += kLanes) Store(acc_[r] + c, Load(acc_[r] + c) * Splat(rescale));
  }

  // Adds the chunk's values to kRows rows from `first` on.
  template <int kRows, typename T>
  void AddValues(const T* const* rows, int count, int first, const RowsAhead<T>& next) {
    int fetched = 0;
    for (int begin = 0; begin < count; begin += kBatch) {
      const int keys = static_cast<int>(Min(kBatch, count - begin));
      for (int c = 0; c < d_; c += kStep) {
        const int until = static_cast<int>(Min(next.count, begin + kBatch * (c + kStep) / d_));
        for (; fetched < until; ++fetched) next.Fetch(fetched, d_);
        AddColumns<kRows>(rows + begin, begin, keys, first, c);
      }
    }
  }
  // Adds kStep columns from `c` on of `count` keys, which begin with number `begin` of the chunk.
  template <int kRows, typename T>
  __attribute__((noinline)) void AddColumns(const T* const* rows, int begin, int count, int first,
                                            int c) {
    float* sums = acc_[first] + c;
    Vec a[kRows], b[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      a[r] = Load(sums + r * kMaxDim);
      b[r] = Load(sums + r * kMaxDim + kLanes);
    }
    const float* p = scores_[first] + begin;
    for (int j = 0; j < count; ++j) {
      Vec x, y;
      LoadPair(rows[j] + c, x, y);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = Splat(p[r * kChunkKeys + j]);
        MultiplyAdd(a[r], weight, x);
        MultiplyAdd(b[r], weight, y);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Store(sums + r * kMaxDim, a[r]);
      Store(sums + r * kMaxDim + kLanes, b[r]);
    }
  }

  // Writes a row's output and log-sum-exp. The sums are in the order of LoadPair.
  template <typename T>
  void Write(int r, float* out) const {
    const float normalizer = state_[r].Normalizer();
    for (int c = 0; c < d_; c += kStep) {
      for (int i = 0; i < kLanes; ++i) {
        const float a = acc_[r][c + i] * normalizer, b = acc_[r][c + kLanes + i] * normalizer;
        out[sizeof(T) == 2 ? c + 2 * i : c + i] = a;
        out[sizeof(T) == 2 ? c + 2 * i + 1 : c + kLanes + i] = b;
      }
    }
    out[d_] = state_[r].LogSumExp(kLn2);
  }

  int d_ = 0, rows_ = 0;
  alignas(64) float q_[kMostRows][kMaxDim];         // in the order of LoadPair
  alignas(64) uint16_t pairs_[kMostRows][kMaxDim];  // q unchanged, for AddPairs
  alignas(64) float acc_[kMostRows][kMaxDim];       // in the order of LoadPair
  alignas(64) float scores_[kMostRows][kChunkKeys];
  SoftmaxState<float> state_[kMostRows];
  int32_t position_[kMostRows];
};

}  // namespace apb::kernels::APB_ISA
