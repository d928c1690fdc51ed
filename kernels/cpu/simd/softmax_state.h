// The softmax state of attention: the running maximum, sum and output over the keys seen so far,
// and the algebra that all attention kernels and combines of this folder use. The same as
// kernels/cuda/softmax_state.cuh, with its names.
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
// 2^((s - row_max) * scale_log2). The output o, the weighted sum of the values, lies where its
// kernel keeps it: whoever holds it multiplies it by the same factors as row_sum. While keys are
// added, scores are in units of log2, so that scale_log2 is 1.
//
// To merge states over disjoint keys, raise row_max to the largest of theirs first, then Merge()
// each and add its output times the returned factor. A normalized partial result with its
// log-sum-exp is the state {lse, 1} with scale_log2 = log2(e) and scale 1.
template <typename F>
struct SoftmaxState {
  F row_max = AllOf<F>(kMasked);  // m; half of kMasked or less without keys
  F row_sum = AllOf<F>(0);        // d, of the weights

  // The score that weights are relative to: row_max, or 0 for a row without keys, whose weights are
  // then 0.
  F Reference() const { return HasNoKeys(row_max) ? AllOf<F>(0) : row_max; }
  // The factor that makes sums of weights relative to `other_max` relative to row_max. Exactly 1
  // for an unchanged maximum, 0 for a state without keys. other_max <= row_max.
  F Rescale(F other_max, float scale_log2 = 1) const {
    return HasNoKeys(other_max) ? AllOf<F>(0)
                                : Exp2((other_max - Reference()) * AllOf<F>(scale_log2));
  }
  // Raises the maximum to the highest of some more scores times `factor`, which gives them units of
  // log2. Returns the factor for the output so far; the caller adds the scores' weights to row_sum.
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
  // `scale`: of the scores, in natural units. Of F = float alone.
  float LogSumExp(float scale = kLn2) const {
    return row_sum > 0 ? row_max * scale + __builtin_log2f(row_sum) * kLn2 : -__builtin_inff();
  }

  static auto HasNoKeys(F maximum) { return maximum <= AllOf<F>(0.5f * kMasked); }
};

// Combines the partial results of one row over disjoint keys, in order: part i's normalized output
// of d <= 256 floats at outs + i * out_stride, its log-sum-exp at lses[i * lse_stride]. Writes the
// output and, unless null, the log-sum-exp; both may be the places of a part.
template <typename O>
static void CombineParts(const float* outs, int64_t out_stride, const float* lses,
                         int64_t lse_stride, int64_t parts, int64_t d, O* out, float* lse) {
  SoftmaxState<float> all;
  for (int64_t i = 0; i < parts; ++i) all.row_max = MaxOf(all.row_max, lses[i * lse_stride]);
  float sum[256] = {};
  for (int64_t i = 0; i < parts; ++i) {
    const float weight = all.Merge({lses[i * lse_stride], 1}, kLog2e);
    if (weight == 0) continue;  // whatever the row of a part without keys holds
    for (int64_t c = 0; c < d; ++c) sum[c] += weight * outs[i * out_stride + c];
  }
  const float normalizer = all.Normalizer();
  for (int64_t c = 0; c < d; ++c) Assign(out[c], sum[c] * normalizer);
  if (lse != nullptr) *lse = all.LogSumExp(1);
}

}  // namespace apb::kernels::APB_ISA
