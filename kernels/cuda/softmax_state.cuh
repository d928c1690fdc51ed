// The softmax state of attention (maximum, sum and output over the keys seen so far) and its
// algebra, which every attention kernel and every combine uses. It is the online softmax of
// FlashAttention, in the form of FlashInfer's state_t {m, d, o}.
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// The softmax of one query row. The weight of a score s is 2^((s - row_max) * scale_log2), where
// scale_log2 is the scale of the scores times log2(e). The kernel keeps the output o, the weighted
// sum of the values, in accumulators or shared memory, and multiplies it by the same factors as
// row_sum.
//
// To combine states over disjoint keys, raise row_max to the largest maximum of all, then Merge()
// each state and add its output times the returned factor. A normalized partial result with its
// log-sum-exp is the state {lse, 1} with scale = 1.
struct SoftmaxState {
  float row_max = -INFINITY;  // m, the largest unscaled score; -INFINITY before the first key
  float row_sum = 0;          // d, the sum of the weights

  // Converts a sum of weights relative to other_max <= row_max into one relative to row_max:
  // returns the factor. Exactly 1 if both are equal, 0 if other_max is that of a state without
  // keys.
  __device__ __forceinline__ float Rescale(float other_max, float scale_log2) const {
    return Exp2((other_max - Reference()) * scale_log2);
  }
  // Raises row_max to new_max >= row_max. Returns the factor for the output so far.
  __device__ __forceinline__ float RaiseMax(float new_max, float scale_log2) {
    const float old_max = row_max;
    row_max = new_max;
    const float rescale = Rescale(old_max, scale_log2);
    row_sum *= rescale;
    return rescale;
  }
  // The weight of a score: one multiply-add and one ex2. The caller adds it to row_sum.
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
  // `scale` turns scores into natural logarithms.
  __device__ __forceinline__ float LogSumExp(float scale) const {
    return row_sum > 0 ? row_max * scale + logf(row_sum) : -INFINITY;
  }

 private:
  // The score to which weights are relative: row_max, or 0 before the first key, because the
  // difference of two infinities is NaN.
  __device__ __forceinline__ float Reference() const {
    return row_max == -INFINITY ? 0.0f : row_max;
  }
};

// The maximum, and the sum, over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The states of a lane's two rows of an accumulator: row lane / 4 and the row 8 after it. Four
// lanes share a row's scores. row_max is that of the whole row; row_sum covers the lane's own
// scores until ReduceLanes().
struct SoftmaxRows {
  SoftmaxState row[2];

  // Turns the scores s of an accumulator into weights. rescale[i] is the factor for row i's output
  // so far. Of each four scores, the first two belong to row 0 and the others to row 1.
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
  // Makes row_sum that of the whole row. Called once, at the end.
  __device__ __forceinline__ void ReduceLanes() {
    row[0].row_sum = QuadSum(row[0].row_sum);
    row[1].row_sum = QuadSum(row[1].row_sum);
  }
};

}  // namespace apb::kernels::cuda
