// The running softmax of rows whose scores lie in the accumulators of matrix products.
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Sums of exponentials and their maximum, of two rows (lane / 4 and 8 behind it), over the columns
// that this lane holds. `scale_log2` is the scale of the scores times log2(e), new_max 0.
struct SoftmaxState {
  float row_max[2] = {-INFINITY, -INFINITY};  // of the scores as they come, before the scale
  float row_sum[2] = {0, 0};                  // this lane's columns only

  // Scores of an accumulator (four to eight columns) become probabilities relative to the new
  // maximum; rescale[i] is what earlier sums and outputs of row i are to be multiplied with.
  template <int kScores>
  __device__ __forceinline__ void Update(float (&s)[kScores], float scale_log2,
                                         float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_max = row_max[half];
#pragma unroll
      for (int n = 0; n < kScores; n += 4)
        new_max = fmaxf(new_max, fmaxf(s[n + 2 * half], s[n + 2 * half + 1]));
      new_max = QuadMax(new_max);
      // A row that has seen no key yet: any base will do, all its weights are 2^-inf.
      const float base = new_max == -INFINITY ? 0.0f : new_max * scale_log2;
      rescale[half] = Exp2(row_max[half] * scale_log2 - base);
      row_max[half] = new_max;
      float added = 0;
#pragma unroll
      for (int n = 0; n < kScores; n += 4) {
#pragma unroll
        for (int i = n + 2 * half; i < n + 2 * half + 2; ++i) {
          s[i] = Exp2(s[i] * scale_log2 - base);
          added += s[i];
        }
      }
      row_sum[half] = row_sum[half] * rescale[half] + added;
    }
  }
  // Of the whole row; call once, at the end.
  __device__ __forceinline__ void ReduceLanes() {
    row_sum[0] = QuadSum(row_sum[0]);
    row_sum[1] = QuadSum(row_sum[1]);
  }
  // After ReduceLanes.
  __device__ __forceinline__ float Inverse(int half) const {
    return row_sum[half] > 0 ? 1.0f / row_sum[half] : 0.0f;
  }
  __device__ __forceinline__ float LogSum(int half, float scale_log2) const {
    return row_sum[half] > 0 ? row_max[half] * scale_log2 * kLn2 + logf(row_sum[half]) : -INFINITY;
  }
};

}  // namespace apb::kernels::cuda
