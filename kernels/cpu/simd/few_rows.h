// Decode over the paged cache for a few rows (query heads of a group times new tokens), bound by
// reading the cache: keys and values are used where they lie, each once for every three rows.
#pragma once

#include "kernels/cpu/simd/paged_keys.h"

namespace apb::kernels::APB_ISA {

// Keys of a chunk, whose scores of all rows stay in the first cache.
constexpr int kChunkKeys = 256;

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
    for (int64_t s = task.slot_begin; s < task.slot_end; s += kChunkKeys) {
      const int count = static_cast<int>(Min(kChunkKeys, task.slot_end - s));
      for (int r = 0; r < rows_; r += 3) {
        Some(Min(3, rows_ - r), [&]<int kRows>() { Score<kRows>(keys, s, count, r); });
      }
      Mask(sequence, s, count);
      for (int r = 0; r < rows_; ++r) Weigh(r, count, factor);
      for (int r = 0; r < rows_; r += 3) {
        Some(Min(3, rows_ - r), [&]<int kRows>() { AddValues<kRows>(values, s, count, r); });
      }
    }
    for (int r = 0; r < rows_; ++r) Write<T>(r, partials + task.partial + r * (d_ + 1));
  }

 private:
  // Rows that are fetched before they are used; a block's worth as a rule.
  static constexpr int kAhead = 32;

  template <typename F>
  static void Some(int64_t rows, F f) {
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
      __builtin_memset(acc_[r], 0, sizeof(float) * d_);
      position_[r] = static_cast<const int32_t*>(args.q_positions.data)[t];
      row_max_[r] = kMasked;
      row_sum_[r] = 0;
    }
  }

  template <typename T>
  void Fetch(const PagedRowsOf<T>& source, int64_t slot) const {
    const char* row = reinterpret_cast<const char*>(source.Row(slot));
    for (int64_t i = 0; i < d_ * static_cast<int64_t>(sizeof(T)); i += 64)
      __builtin_prefetch(row + i);
  }

  // Scores of the chunk's keys for kRows rows from `first` on, kLanes keys at a time; behind the last
  // key those of the last one again.
  template <int kRows, typename T>
  void Score(const PagedRowsOf<T>& keys, int64_t slot, int count, int first) {
    for (int j = 0; j < count; j += kLanes) {
      Vec sums[kRows][kLanes];
      for (int i = 0; i < kLanes; i += 4) {
        const T* rows[4];
        for (int k = 0; k < 4; ++k) {
          const int key = j + i + k < count ? j + i + k : count - 1;
          rows[k] = keys.Row(slot + key);
          if (first == 0 && key + kAhead < count) Fetch(keys, slot + key + kAhead);
        }
        ScoreFour<kRows>(rows, first, i, sums);
      }
      for (int r = 0; r < kRows; ++r) Store(scores_[first + r] + j, SumsOf(sums[r]));
    }
  }
  template <int kRows, typename T>
  __attribute__((noinline)) void ScoreFour(const T* const (&rows)[4], int first, int at,
                                           Vec (&sums)[kRows][kLanes]) {
    Vec acc[kRows][4] = {};
    for (int c = 0; c < d_; c += kStep) {
      Vec a[kRows], b[kRows];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
        a[r] = Load(q_[first + r] + c);
        b[r] = Load(q_[first + r] + c + kLanes);
      }
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        Vec x, y;
        LoadPair(rows[k] + c, x, y);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
          MultiplyAdd(acc[r][k], a[r], x);
          MultiplyAdd(acc[r][k], b[r], y);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < 4; ++k) sums[r][at + k] = acc[r][k];
    }
  }

  // Takes away what rows do not see; fills up to a whole vector.
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

  // Turns a row's scores into probabilities (times a power of two).
  void Weigh(int r, int count, float factor) {
    float* s = scores_[r];
    Vec top0 = Splat(kMasked), top1 = top0;
    for (int j = 0; j < count; j += kStep) {
      top0 = MaxOf(top0, Load(s + j));
      top1 = MaxOf(top1, Load(s + j + kLanes));
    }
    const float highest = LargestOf(MaxOf(top0, top1)), before = row_max_[r];
    const float scaled = highest <= 0.5f * kMasked ? kMasked : highest * factor;
    const float now = scaled > before ? scaled : before;
    const float shift = now <= 0.5f * kMasked ? 0 : now;
    const float rescale = before <= 0.5f * kMasked ? 0 : Exp2Of(before - shift);
    Vec sum0{}, sum1{};
    for (int j = 0; j < count; j += kStep) {
      const Vec a = Exp2(Load(s + j) * Splat(factor) - Splat(shift));
      const Vec b = Exp2(Load(s + j + kLanes) * Splat(factor) - Splat(shift));
      sum0 += a;
      sum1 += b;
      Store(s + j, a);
      Store(s + j + kLanes, b);
    }
    row_max_[r] = now;
    row_sum_[r] = row_sum_[r] * rescale + SumOf(sum0 + sum1);
    if (rescale == 1.0f) return;
    for (int c = 0; c < d_; c += kLanes) Store(acc_[r] + c, Load(acc_[r] + c) * Splat(rescale));
  }

  template <int kRows, typename T>
  void AddValues(const PagedRowsOf<T>& values, int64_t slot, int count, int first) {
    const T* rows[kChunkKeys];
    for (int j = 0; j < count; ++j) rows[j] = values.Row(slot + j);
    int c = 0;
    for (; c + 2 * kStep <= d_; c += 2 * kStep)
      AddColumns<kRows, 2>(rows, count, first, c, c == 0 && first == 0);
    if (c < d_) AddColumns<kRows, 1>(rows, count, first, c, c == 0 && first == 0);
  }
  // kPairs * kStep columns from `c` on. `fetch`: of this chunk's rows, the whole ones ahead.
  template <int kRows, int kPairs, typename T>
  __attribute__((noinline)) void AddColumns(const T* const* rows, int count, int first, int c,
                                            bool fetch) {
    Vec acc[kRows][2 * kPairs];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 2 * kPairs; ++i) acc[r][i] = Load(acc_[first + r] + c + i * kLanes);
    }
    const float* p = scores_[first];
    const int64_t bytes = d_ * static_cast<int64_t>(sizeof(T));
    for (int j = 0; j < count; ++j) {
      if (fetch && j + kAhead < count) {
        const char* ahead = reinterpret_cast<const char*>(rows[j + kAhead]);
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
      }
#pragma GCC unroll 2
      for (int i = 0; i < kPairs; ++i) {
        Vec x, y;
        LoadPair(rows[j] + c + i * kStep, x, y);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
          const Vec weight = Splat(p[r * kChunkKeys + j]);
          MultiplyAdd(acc[r][2 * i], weight, x);
          MultiplyAdd(acc[r][2 * i + 1], weight, y);
        }
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 2 * kPairs; ++i) Store(acc_[first + r] + c + i * kLanes, acc[r][i]);
    }
  }

  // The sums lie in the order of LoadPair.
  template <typename T>
  void Write(int r, float* out) const {
    const float sum = row_sum_[r], inverse = sum > 0 ? 1.0f / sum : 0.0f;
    for (int c = 0; c < d_; c += kStep) {
      for (int i = 0; i < kLanes; ++i) {
        const float a = acc_[r][c + i] * inverse, b = acc_[r][c + kLanes + i] * inverse;
        out[sizeof(T) == 2 ? c + 2 * i : c + i] = a;
        out[sizeof(T) == 2 ? c + 2 * i + 1 : c + kLanes + i] = b;
      }
    }
    out[d_] = sum > 0 ? (row_max_[r] + __builtin_log2f(sum)) * kLn2 : -__builtin_inff();
  }

  int d_ = 0, rows_ = 0;
  alignas(64) float q_[kMostRows][kMaxDim];    // in the order of LoadPair
  alignas(64) float acc_[kMostRows][kMaxDim];  // likewise
  alignas(64) float scores_[kMostRows][kChunkKeys];
  float row_max_[kMostRows], row_sum_[kMostRows];
  int32_t position_[kMostRows];
};

}  // namespace apb::kernels::APB_ISA
