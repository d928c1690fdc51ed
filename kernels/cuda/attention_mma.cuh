// Attention of 16 rows by one warp with mma.sync (sm_80 and later), which prefill and paged
// attention share. Tiles of K and V are in shared memory as rows of D + 8 numbers: 16 bytes of
// padding put the eight rows that one ldmatrix reads into different banks, for every D.
#pragma once

#include "kernels/cuda/ptx/cp_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/softmax_state.cuh"

namespace apb::kernels::cuda {

// Stores two neighbouring elements of an output row, of type float or T. `at` counts elements and
// is even.
template <typename T>
__device__ __forceinline__ void StorePair(void* out, bool is_float, int64_t at, float a, float b) {
  if (is_float) {
    *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(a, b);
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(out) + at) = PackPair<T>(a, b);
  }
}

// A warp's queries, outputs and softmax states. T is the type of queries, keys and values, BFloat16
// or Float16. A lane has two of the 16 rows: lane / 4 and the row 8 after it.
template <typename T, int D>
struct WarpAttention {
  static constexpr int kStride = D + 8;

  uint32_t q[D / 16][4];
  float out[D / 8][4] = {};
  SoftmaxRows softmax;

  // Loads the lane's two query rows; null for a row that does not exist.
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

  // Attends to the kKeys keys of a tile in shared memory. If `masked`, sees(half, key) tells
  // whether row `half` of the lane sees key number `key` of the tile.
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
        Ldmatrix(b, k_row + n * 16 * kStride + kk * 16);
        MmaSync<T>(Quad(s, 2 * n), q[kk], b[0], b[1]);
        MmaSync<T>(Quad(s, 2 * n + 1), q[kk], b[2], b[3]);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (!sees(i / 2 % 2, i / 4 * 8 + lane % 4 * 2 + i % 2)) s[i] = -INFINITY;
      }
    }
    float rescale[2];
    softmax.Update(s, scale_log2, rescale);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= rescale[i / 2];
    }
    const T* v_row = v + (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
#pragma unroll
    for (int kk = 0; kk < kKeys / 16; ++kk) {
      // Weights are at most 1, so f16 holds them. It drops weights below 2^-25 of the row's
      // largest.
      const uint32_t p[4] = {
          PackPair<T>(s[8 * kk], s[8 * kk + 1]), PackPair<T>(s[8 * kk + 2], s[8 * kk + 3]),
          PackPair<T>(s[8 * kk + 4], s[8 * kk + 5]), PackPair<T>(s[8 * kk + 6], s[8 * kk + 7])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        LdmatrixTrans(b, v_row + kk * 16 * kStride + n * 16);
        MmaSync<T>(out[2 * n], p, b[0], b[1]);
        MmaSync<T>(out[2 * n + 1], p, b[2], b[3]);
      }
    }
  }

  // Writes the lane's part of normalized row `half`, whose first element is number `at` of `to`.
  // After softmax.ReduceLanes().
  __device__ __forceinline__ void WriteRow(int half, void* to, bool is_float, int64_t at) const {
    const float normalizer = softmax.row[half].Normalizer();
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      StorePair<T>(to, is_float, at + n * 8 + column, out[n][2 * half] * normalizer,
                   out[n][2 * half + 1] * normalizer);
    }
  }

 private:
  template <int kScores>
  static __device__ __forceinline__ float (&Quad(float (&s)[kScores], int n))[4] {
    return *reinterpret_cast<float(*)[4]>(&s[4 * n]);
  }
};

}  // namespace apb::kernels::cuda
