// The softmax state of attention (maximum, sum and output over the keys seen so far) and its
// algebra, which every attention kernel and every combine of this folder uses. The names are those
// of kernels/cuda/softmax_state.cuh.
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace apb::kernels::APB_ISA {

// x itself, or a vector of it.
template <typename F>
static inline F AllOf(float x) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return x;
  } else {
    return Splat(x);
  }
}

// The softmax of one query row (F = float) or of kLanes rows (F = Vec). The weight of a score s is
// 2^((s - row_max) * scale_log2). The kernel keeps the output o, the weighted sum of the values,
// and multiplies it by the same factors as row_sum. Kernels that add keys use scores in units of
// log2, so that scale_log2 is 1.
//
// To combine states over disjoint keys, raise row_max to the largest maximum of all, then Merge()
// each state and add its output times the returned factor. A normalized partial result with its
// log-sum-exp is the state {lse, 1} with scale_log2 = log2(e) and scale = 1.
template <typename F>
struct SoftmaxState {
  F row_max = AllOf<F>(kMasked);  // m, the largest score; at most kMasked / 2 before the first key
  F row_sum = AllOf<F>(0);        // d, the sum of the weights

  // The score to which weights are relative: row_max, or 0 before the first key, which makes the
  // weights of masked scores 0.
  F Reference() const { return HasNoKeys(row_max) ? AllOf<F>(0) : row_max; }
  // Converts a sum of weights relative to other_max <= row_max into one relative to row_max:
  // returns the factor. Exactly 1 if both are equal, 0 if other_max is that of a state without
  // keys.
  F Rescale(F other_max, float scale_log2 = 1) const {
    return HasNoKeys(other_max) ? AllOf<F>(0)
                                : Exp2((other_max - Reference()) * AllOf<F>(scale_log2));
  }
  // Raises row_max to highest * factor, in units of log2; `highest` is the highest score of some
  // more keys. Returns the factor for the output so far. The caller adds the weights of the keys to
  // row_sum.
  F RaiseMax(F highest, float factor) {
    const F old_max = row_max;
    row_max = MaxOf(old_max, HasNoKeys(highest) ? AllOf<F>(kMasked) : highest * AllOf<F>(factor));
    const F rescale = Rescale(old_max);
    row_sum = row_sum * rescale;
    return rescale;
  }
  // Adds the sum of a state over other keys. Returns the factor for its output.
  F Merge(const SoftmaxState& other, float scale_log2 = 1) {
    const F rescale = Rescale(other.row_max, scale_log2);
    row_sum += rescale * other.row_sum;
    return rescale;
  }
  // The factor that normalizes the output; 0 for a row without keys.
  F Normalizer() const { return row_sum > AllOf<F>(0) ? AllOf<F>(1) / row_sum : AllOf<F>(0); }
  // `scale` turns scores into natural logarithms. Only for F = float.
  float LogSumExp(float scale = kLn2) const {
    return row_sum > 0 ? row_max * scale + __builtin_log2f(row_sum) * kLn2 : -__builtin_inff();
  }

  static auto HasNoKeys(F maximum) { return maximum <= AllOf<F>(0.5f * kMasked); }
};

// Combines the partial results of one row over disjoint keys, in their order. Part i's normalized
// output of d <= 256 floats is at outs + i * out_stride, its log-sum-exp at lses[i * lse_stride].
// Writes out[d] and, unless null, *lse; both may lie where a part does.
template <typename O>
static void CombineParts(const float* outs, int64_t out_stride, const float* lses,
                         int64_t lse_stride, int64_t parts, int64_t d, O* out, float* lse) {
  SoftmaxState<float> all;
  for (int64_t i = 0; i < parts; ++i) all.row_max = MaxOf(all.row_max, lses[i * lse_stride]);
  float sum[256] = {};
  for (int64_t i = 0; i < parts; ++i) {
    const float weight = all.Merge({lses[i * lse_stride], 1}, kLog2e);
    if (weight == 0) continue;  // the output of a part without keys may hold anything
    for (int64_t c = 0; c < d; ++c) sum[c] += weight * outs[i * out_stride + c];
  }
  const float normalizer = all.Normalizer();
  for (int64_t c = 0; c < d; ++c) Assign(out[c], sum[c] * normalizer);
  if (lse != nullptr) *lse = all.LogSumExp(1);
}

}  // namespace apb::kernels::APB_ISA
