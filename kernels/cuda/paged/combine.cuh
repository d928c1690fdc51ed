// The two combines of paged attention: of a block's warps, which had different keys of the same
// rows, and of a sequence's splits. Both use SoftmaxState.
#pragma once

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/paged/mainloop.cuh"

namespace apb::kernels::cuda::paged {

// Copies a lane's part of its warp's states and outputs to shared memory.
template <typename T, int D, typename WarpResults>
__device__ __forceinline__ void ShareResults(const WarpAttention<T, D>& warp,
                                             WarpResults& results) {
  const int lane = threadIdx.x % kWarp, warp_index = threadIdx.x / kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + half * 8;
    results.row_max[warp_index][r] = warp.softmax.row[half].row_max;
    results.row_sum[warp_index][r] = warp.softmax.row[half].row_sum;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      results.out[warp_index][r][n * 8 + lane % 4 * 2] = warp.out[n][2 * half];
      results.out[warp_index][r][n * 8 + lane % 4 * 2 + 1] = warp.out[n][2 * half + 1];
    }
  }
}

// Combines the block's warps and writes the rows, eight threads for a row. `results` takes the
// memory of the tiles. After softmax.ReduceLanes().
template <typename T, int D, typename WarpResults>
__device__ __forceinline__ void CombineWarps(const Params& params, const WorkTile& work,
                                             const WarpAttention<T, D>& warp,
                                             WarpResults& results) {
  const float scale_log2 = params.scale * kLog2E;
  CpAsyncWaitGroup<0>();
  __syncthreads();  // no warp reads the tiles any more
  ShareResults(warp, results);
  __syncthreads();
  const int r = threadIdx.x / 8, packed = work.row_tile * kFewRows + r;
  const int64_t row = RowOf(params, work, packed);
  if (row < 0) return;
  SoftmaxState all;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) all.row_max = fmaxf(all.row_max, results.row_max[w][r]);
  float weight[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    weight[w] = all.Merge({results.row_max[w][r], results.row_sum[w][r]}, scale_log2);
  const RowTarget to = TargetOf<kFewRows, D>(params, work, row, r, packed);
  const float normalizer = all.Normalizer();
  for (int c = threadIdx.x % 8 * 2; c < D; c += 16) {
    float pair[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      pair[0] += weight[w] * results.out[w][r][c];
      pair[1] += weight[w] * results.out[w][r][c + 1];
    }
    StorePair<T>(to.out, to.is_float, to.at + c, pair[0] * normalizer, pair[1] * normalizer);
  }
  if (to.lse != nullptr && threadIdx.x % 8 == 0) *to.lse = all.LogSumExp(params.scale);
}

// Combines the splits of one row, with one warp, and writes the result. r is the row's number in
// its tile, `packed` its number in the sequence, `row` its row of out. The block is that of split
// 0, whose partial results come first.
template <typename T, int D, int kRows>
__device__ __forceinline__ void CombineSplits(const Params& params, const WorkTile& work, int r,
                                              int64_t row, int packed) {
  const int lane = threadIdx.x % kWarp, kv_head = blockIdx.y;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kRows;  // from a split to the next
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * gridDim.y + kv_head) * kRows + r;
  const float* lses = params.partial_lses + first;
  SoftmaxState all;
  for (int i = 0; i < work.num_splits; ++i) all.row_max = fmaxf(all.row_max, lses[i * step]);
  float sum[D / 16] = {};  // dimensions 2 lane and 2 lane + 1, then those 64 further on
  for (int i = 0; i < work.num_splits; ++i) {
    const float weight = all.Merge({lses[i * step], 1}, kLog2E);
    const float* from = params.partial_outs + (first + i * step) * D;
#pragma unroll
    for (int c = 0; c < D; c += 2 * kWarp) {
      if (c + 2 * lane < D) {
        sum[c / kWarp] += weight * from[c + 2 * lane];
        sum[c / kWarp + 1] += weight * from[c + 2 * lane + 1];
      }
    }
  }
  const float normalizer = all.Normalizer();
  const int head = kv_head * params.group + packed % params.group;
  const int64_t out = row * params.out_row + head * params.out_head;
#pragma unroll
  for (int c = 0; c < D; c += 2 * kWarp) {
    if (c + 2 * lane < D) {
      StorePair<T>(params.out, params.out_is_float, out + c + 2 * lane, sum[c / kWarp] * normalizer,
                   sum[c / kWarp + 1] * normalizer);
    }
  }
  if (params.lse != nullptr && lane == 0)
    params.lse[row * params.lse_row + head] = all.LogSumExp(1);
}

}  // namespace apb::kernels::cuda::paged
