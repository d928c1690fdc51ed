// Attention of 16 rows by one warp with mma.sync (sm_80 and later), the step that prefill and paged
// attention share. Tiles of K and V lie in shared memory as rows of D + 8 numbers: the 16 bytes of
// padding put the eight rows that one ldmatrix reads into different banks, for every D.
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

// Two neighbouring elements of an output row, of type T or float. `at` is in elements and even.
template <typename T>
__device__ __forceinline__ void StorePair(void* out, bool is_float, int64_t at, float a, float b) {
  if (is_float) {
    *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(a, b);
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(out) + at) = PackPair<T>(a, b);
  }
}

// Sums of exponentials and their maximum, of two rows (lane / 4 and 8 behind it), over the columns
// that this lane holds. `scale_log2` is the scale of the scores times log2(e), above 0.
struct OnlineSoftmax {
  float top[2] = {-INFINITY, -INFINITY};  // of the scores as they come, before the scale
  float sum[2] = {0, 0};                  // this lane's columns only

  // Scores of an accumulator (four to eight columns) become probabilities relative to the new
  // maximum; shrink[i] is what earlier sums and outputs of row i are to be multiplied with.
  template <int kScores>
  __device__ __forceinline__ void Take(float (&s)[kScores], float scale_log2, float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float above = top[half];
#pragma unroll
      for (int n = 0; n < kScores; n += 4)
        above = fmaxf(above, fmaxf(s[n + 2 * half], s[n + 2 * half + 1]));
      above = QuadMax(above);
      // A row that has seen no key yet: any base will do, all its weights are 2^-inf.
      const float base = above == -INFINITY ? 0.0f : above * scale_log2;
      shrink[half] = Exp2(top[half] * scale_log2 - base);
      top[half] = above;
      float added = 0;
#pragma unroll
      for (int n = 0; n < kScores; n += 4) {
#pragma unroll
        for (int i = n + 2 * half; i < n + 2 * half + 2; ++i) {
          s[i] = Exp2(s[i] * scale_log2 - base);
          added += s[i];
        }
      }
      sum[half] = sum[half] * shrink[half] + added;
    }
  }
  // Of the whole row; call once, at the end.
  __device__ __forceinline__ void JoinLanes() {
    sum[0] = QuadSum(sum[0]);
    sum[1] = QuadSum(sum[1]);
  }
  // After JoinLanes.
  __device__ __forceinline__ float Inverse(int half) const {
    return sum[half] > 0 ? 1.0f / sum[half] : 0.0f;
  }
  __device__ __forceinline__ float LogSum(int half, float scale_log2) const {
    return sum[half] > 0 ? top[half] * scale_log2 * kLn2 + logf(sum[half]) : -INFINITY;
  }
};

// Of queries, keys and values of type T, BFloat16 or Float16.
template <typename T, int D>
struct WarpAttention {
  static constexpr int kStride = D + 8;

  uint32_t q[D / 16][4];
  float out[D / 8][4] = {};
  OnlineSoftmax softmax;

  // The two rows of this lane, null for one that is not there.
  __device__ __forceinline__ void LoadRows(const T* row0, const T* row1) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* row = i % 2 == 0 ? row0 : row1;
        q[kk][i] = row == nullptr
                       ? 0u
                       : *reinterpret_cast<const uint32_t*>(row + kk * 16 + i / 2 * 8 + column);
      }
    }
  }

  // kKeys keys in shared memory. Where `masked`, sees(half, key) says whether row `half` of this
  // lane sees key number `key` of the tile.
  template <int kKeys, typename Sees>
  __device__ __forceinline__ void Attend(const T* k, const T* v, float scale_log2, bool masked,
                                         Sees sees) {
    const int lane = threadIdx.x % kWarp;
    float s[kKeys / 2] = {};
    const T* k_row = k + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k_row + n * 16 * kStride + kk * 16);
        MatrixMultiplyAdd<T>(Quad(s, 2 * n), q[kk], b[0], b[1]);
        MatrixMultiplyAdd<T>(Quad(s, 2 * n + 1), q[kk], b[2], b[3]);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (!sees(i / 2 % 2, i / 4 * 8 + lane % 4 * 2 + i % 2)) s[i] = -INFINITY;
      }
    }
    float shrink[2];
    softmax.Take(s, scale_log2, shrink);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
    }
    const T* v_row = v + (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
#pragma unroll
    for (int kk = 0; kk < kKeys / 16; ++kk) {
      // At most 1, so f16 holds them; it drops what is below 2^-25 of the row's largest so far.
      const uint32_t p[4] = {
          PackPair<T>(s[8 * kk], s[8 * kk + 1]), PackPair<T>(s[8 * kk + 2], s[8 * kk + 3]),
          PackPair<T>(s[8 * kk + 4], s[8 * kk + 5]), PackPair<T>(s[8 * kk + 6], s[8 * kk + 7])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        LoadMatricesTransposed(b, v_row + kk * 16 * kStride + n * 16);
        MatrixMultiplyAdd<T>(out[2 * n], p, b[0], b[1]);
        MatrixMultiplyAdd<T>(out[2 * n + 1], p, b[2], b[3]);
      }
    }
  }

  // Row `half` of this lane to elements at, at + 1, ... of `to`; after softmax.JoinLanes.
  __device__ __forceinline__ void WriteRow(int half, void* to, bool is_float, int64_t at) const {
    const float inverse = softmax.Inverse(half);
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      StorePair<T>(to, is_float, at + n * 8 + column, out[n][2 * half] * inverse,
                   out[n][2 * half + 1] * inverse);
    }
  }

 private:
  template <int kScores>
  static __device__ __forceinline__ float (&Quad(float (&s)[kScores], int n))[4] {
    return *reinterpret_cast<float(*)[4]>(&s[4 * n]);
  }
};

}  // namespace apb::kernels::cuda
