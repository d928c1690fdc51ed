// Paged attention with mma.sync: one new token of each sequence (decode), or several (the query
// pass, follow-up turns), over the paged KV cache. All query heads of a KV head and all tokens of a
// sequence are packed into the rows of one tile, so that keys are read once for them. Bound by
// reading the cache in decode. Here are the two kernels and their launches.
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/paged/combine.cuh"
#include "kernels/cuda/paged/mainloop.cuh"

namespace apb::kernels::cuda {
namespace paged {
namespace {

template <typename T, int D, bool kFew>
__global__ void __launch_bounds__(kThreads, 2) PagedKernel(const __grid_constant__ Params params) {
  auto& shared = *reinterpret_cast<typename Layout<T, D, kFew>::Shared*>(SharedMemory());
  WorkTile work;
  if (!FindWorkTile(params, static_cast<int>(blockIdx.x), work)) return;
  Consumer<T, D, kFew> consumer(params, work);
  Mainloop(params, work, shared, consumer);
  consumer.warp.softmax.ReduceLanes();
  if constexpr (kFew) {
    CombineWarps(params, work, consumer.warp, shared.results);
  } else {
    consumer.Store(params, work);
  }
}

// Combines the splits of every row tile. The grid is PagedKernel's; the blocks of a tile's first
// split do the work, a warp for a row.
template <typename T, int D, int kRows>
__global__ void __launch_bounds__(kThreads)
    CombineSplitsKernel(const __grid_constant__ Params params) {
  WorkTile work;
  if (!FindWorkTile(params, static_cast<int>(blockIdx.x), work)) return;
  if (work.split != 0 || work.num_splits == 1) return;
  for (int r = threadIdx.x / kWarp; r < kRows; r += kWarps) {
    const int packed = work.row_tile * kRows + r;
    const int64_t row = RowOf(params, work, packed);
    if (row < 0) return;
    CombineSplits<T, D, kRows>(params, work, r, row, packed);
  }
}

template <typename T, int D, bool kFew>
cudaError_t Run(const Params& params, dim3 grid, bool any_split, cudaStream_t stream) {
  using Sizes = Layout<T, D, kFew>;
  const cudaError_t error = Launch(PagedKernel<T, D, kFew>, grid, kThreads,
                                   sizeof(typename Sizes::Shared), stream, params);
  if (error != cudaSuccess || !any_split) return error;
  return Launch(CombineSplitsKernel<T, D, Sizes::kRows>, grid, kThreads, 0, stream, params);
}

template <typename T, bool kFew>
cudaError_t RunHeadDim(int64_t head_dim, const Params& params, dim3 grid, bool any_split,
                       cudaStream_t stream) {
  switch (head_dim) {
    case 64:
      return Run<T, 64, kFew>(params, grid, any_split, stream);
    case 80:
      return Run<T, 80, kFew>(params, grid, any_split, stream);
    case 96:
      return Run<T, 96, kFew>(params, grid, any_split, stream);
    case 128:
      return Run<T, 128, kFew>(params, grid, any_split, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

// The sequences of one launch: all of few packed rows or all of many.
struct SequenceBatch {
  bool few;
  WorkTileBound bound;
  std::vector<LaunchedRows> rows = {};

  // Packed rows of the partial results of all work tiles; 0 without a split.
  int64_t partial_rows() const {
    return bound.any_split() ? bound.work_tiles() * bound.kv_heads * (few ? kFewRows : kManyRows)
                             : 0;
  }
};

std::vector<SequenceBatch> BatchSequences(const PagedAttentionArgs& a, int multiprocessors) {
  const int kv_heads = static_cast<int>(a.k_cache.shape[1]);
  const int group = static_cast<int>(a.q.shape[1]) / kv_heads;
  const WorkTileBound nothing{.total_slots = a.total_slots,
                              .group = group,
                              .kv_heads = kv_heads,
                              .parallel_blocks = 4 * multiprocessors};
  std::vector<SequenceBatch> batches;
  for (const bool few : {true, false}) {
    bool open = false;  // whether the last batch takes more
    for (size_t i = 0; i < a.rows.size(); ++i) {
      const PagedRows& rows = a.rows[i];
      if (rows.count == 0 || (rows.count * group <= kFewRows) != few) continue;
      if (!open || batches.back().rows.size() == kMaxSequences) {
        batches.push_back({.few = few, .bound = nothing});
        open = true;
      }
      batches.back().rows.push_back({static_cast<int32_t>(rows.begin),
                                     static_cast<int32_t>(rows.count), static_cast<int32_t>(i)});
      batches.back().bound.Add(static_cast<int>(rows.count));
    }
  }
  return batches;
}

Params ToDevice(const PagedAttentionArgs& a, const SequenceBatch& batch, float* scratch) {
  Params d{};
  d.q = a.q.data;
  d.q_row = a.q.stride[0];
  d.q_head = a.q.stride[1];
  d.q_positions = a.q_positions.as<const int32_t>();
  d.k_cache = a.k_cache.data;
  d.v_cache = a.v_cache.data;
  d.block_stride = a.k_cache.stride[0];
  d.head_stride = a.k_cache.stride[1];
  d.slot_stride = a.k_cache.stride[2];
  d.block_size = static_cast<int>(a.k_cache.shape[2]);
  d.out = a.out.data;
  d.out_row = a.out.stride[0];
  d.out_head = a.out.stride[1];
  d.lse = a.lse.as<float>();
  d.lse_row = a.lse.stride[0];
  d.partial_outs = scratch;
  d.partial_lses = d.partial_outs + batch.partial_rows() * a.q.shape[2];
  d.scale = a.scale;
  d.out_is_float = a.out.dtype == DType::kF32;
  d.group = batch.bound.group;
  d.parallel_blocks = batch.bound.parallel_blocks;
  d.sequences = a.sequences;
  d.launched = static_cast<int>(batch.rows.size());
  std::copy(batch.rows.begin(), batch.rows.end(), d.rows);
  return d;
}

}  // namespace
}  // namespace paged

bool MatrixPagedAttentionTakes(const PagedAttentionArgs& a) {
  return IsMatrixType(a.q.dtype) && IsMatrixHeadDim(a.q.shape[2]) && a.scale > 0 &&
         IsAligned16(a.q) && IsAligned16(a.k_cache) && IsAligned16(a.v_cache) && IsAligned16(a.out);
}

size_t PagedScratchBytes(const PagedAttentionArgs& a, int multiprocessors) {
  int64_t rows = 0;
  for (const paged::SequenceBatch& batch : paged::BatchSequences(a, multiprocessors))
    rows = std::max(rows, batch.partial_rows());
  return rows * (a.q.shape[2] + 1) * sizeof(float);
}

cudaError_t MatrixPagedAttention(const PagedAttentionArgs& a, int multiprocessors, void* scratch,
                                 cudaStream_t stream) {
  for (const paged::SequenceBatch& batch : paged::BatchSequences(a, multiprocessors)) {
    const paged::Params params = paged::ToDevice(a, batch, static_cast<float*>(scratch));
    const dim3 grid(static_cast<unsigned>(batch.bound.work_tiles()),
                    static_cast<unsigned>(batch.bound.kv_heads));
    const cudaError_t error = WithMatrixElement(a.q.dtype, [&](auto element) {
      using T = decltype(element);
      const auto run = batch.few ? paged::RunHeadDim<T, true> : paged::RunHeadDim<T, false>;
      return run(a.q.shape[2], params, grid, batch.bound.any_split(), stream);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace apb::kernels::cuda
