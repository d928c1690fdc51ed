// The softmax state of attention: the running maximum, sum and output over the keys seen so far,
// and the algebra that every attention kernel and every combine uses (FlashInfer's state_t m, d, o;
// the online softmax of FlashAttention).
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// The softmax of one query row. The weight of a score s is 2^((s - row_max) * scale_log2). The
// output o, the weighted sum of the values, lies where its kernel keeps it (accumulators, shared
// memory, partial results): whoever holds it multiplies it by the same factors as row_sum.
// `scale_log2` is the scale of the scores times log2(e).
//
// To merge states over disjoint keys, raise row_max to the largest of theirs first, then Merge()
// each and add its output times the returned factor. A normalized partial result with its
// log-sum-exp is the state {lse, 1} with scale 1.
struct SoftmaxState {
  float row_max = -INFINITY;  // m, of the scores before the scale; -INFINITY without keys
  float row_sum = 0;          // d, of the weights

  // The factor that makes sums of weights relative to `other_max` relative to row_max. Exactly 1
  // for an unchanged maximum, 0 for a state without keys. other_max <= row_max.
  __device__ __forceinline__ float Rescale(float other_max, float scale_log2) const {
    return Exp2((other_max - Reference()) * scale_log2);
  }
  // Raises the maximum to new_max >= row_max. Returns the factor for the output so far.
  __device__ __forceinline__ float RaiseMax(float new_max, float scale_log2) {
    const float old_max = row_max;
    row_max = new_max;
    const float rescale = Rescale(old_max, scale_log2);
    row_sum *= rescale;
    return rescale;
  }
  // One multiply-add and one ex2; the caller adds the weight to row_sum.
  __device__ __forceinline__ float Weight(float score, float scale_log2) const {
    return Exp2(score * scale_log2 - Reference() * scale_log2);
  }
  // Adds the sum of a state over other keys. Returns the factor for its output.
  __device__ __forceinline__ float Merge(const SoftmaxState& other, float scale_log2) {
    const float rescale = Rescale(other.row_max, scale_log2);
    row_sum += rescale * other.row_sum;
    return rescale;
  }
  // The factor that normalizes the output; 0 for a row without keys.
  __device__ __forceinline__ float Normalizer() const {
    return row_sum > 0 ? 1.0f / row_sum : 0.0f;
  }
  // `scale`: of the scores, in natural units.
  __device__ __forceinline__ float LogSumExp(float scale) const {
    return row_sum > 0 ? row_max * scale + logf(row_sum) : -INFINITY;
  }

 private:
  // The score that weights are relative to. Any number serves a row without keys, all whose weights
  // are 2^-inf; 0 keeps differences of infinities away.
  __device__ __forceinline__ float Reference() const {
    return row_max == -INFINITY ? 0.0f : row_max;
  }
};

// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The states of a lane's two rows of an accumulator, lane / 4 and 8 below it, whose scores are
// spread over four lanes: row_max is the whole row's, row_sum the lane's own until ReduceLanes().
struct SoftmaxRows {
  SoftmaxState row[2];

  // Turns the scores of an accumulator (four to eight columns) into weights. rescale[i] is the
  // factor for row i's output so far.
  template <int kScores>
  __device__ __forceinline__ void Update(float (&s)[kScores], float scale_log2,
                                         float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      SoftmaxState& state = row[half];
      float new_max = state.row_max;
#pragma unroll
      for (int n = 0; n < kScores; n += 4)
        new_max = fmaxf(new_max, fmaxf(s[n + 2 * half], s[n + 2 * half + 1]));
      rescale[half] = state.RaiseMax(QuadMax(new_max), scale_log2);
      float added = 0;
#pragma unroll
      for (int n = 0; n < kScores; n += 4) {
#pragma unroll
        for (int i = n + 2 * half; i < n + 2 * half + 2; ++i) {
          s[i] = state.Weight(s[i], scale_log2);
          added += s[i];
        }
      }
      state.row_sum += added;
    }
  }
  // Makes row_sum the whole row's. Called once, at the end.
  __device__ __forceinline__ void ReduceLanes() {
    row[0].row_sum = QuadSum(row[0].row_sum);
    row[1].row_sum = QuadSum(row[1].row_sum);
  }
};

}  // namespace apb::kernels::cuda
