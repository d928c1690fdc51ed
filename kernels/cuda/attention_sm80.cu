// Segmented FlashAttention with mma.sync. A block of four warps takes 64 rows of one query head, 16
// for each warp, and goes over the key tiles of its plan. The next tile is copied to shared memory
// (cp.async) while the warps compute on the current one. Bound by the tensor cores.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.h"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T, int D>
struct SharedTiles {
  static constexpr int kStages = 2;
  T k[kStages][kMatrixTileKeys][WarpAttention<T, D>::kStride];
  T v[kStages][kMatrixTileKeys][WarpAttention<T, D>::kStride];
};

// Starts the copy of rows [first, first + 64) of one head. Rows behind the last key become 0.
template <typename T, int D>
__device__ void CopyTile(const T* source, int64_t row_stride, int64_t first, int keys,
                         T (&target)[kMatrixTileKeys][WarpAttention<T, D>::kStride]) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = 0; i < kMatrixTileKeys * kChunks / kThreads; ++i) {
    const int chunk = i * kThreads + threadIdx.x, key = chunk / kChunks, c = chunk % kChunks * 8;
    const bool valid = first + key < keys;
    CpAsync16(&target[key][c], source + (valid ? (first + key) * row_stride + c : 0), valid);
  }
}

// Starts the copy of a key tile to a stage.
template <typename T, int D>
__device__ __forceinline__ void CopyKeys(const SegmentedArgs& a, const TileWalk& at, int kv_head,
                                         SharedTiles<T, D>& shared, int stage) {
  const DeviceSegment& s = a.segment[at.segment];
  const int64_t first = static_cast<int64_t>(at.tile) * kMatrixTileKeys;
  CopyTile<T, D>(static_cast<const T*>(s.k) + kv_head * s.k_head, s.k_row, first, s.keys,
                 shared.k[stage]);
  CopyTile<T, D>(static_cast<const T*>(s.v) + kv_head * s.v_head, s.v_row, first, s.keys,
                 shared.v[stage]);
}

// A warp's 16 rows, of which a lane has two, and their state.
template <typename T, int D>
struct Consumer {
  WarpAttention<T, D> warp;
  int64_t row[2];
  int32_t position[2] = {0, 0};
  bool present[2];

  __device__ __forceinline__ Consumer(const SegmentedArgs& a, const PrefillTile& work) {
    const T* q[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_tile = threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4 + half * 8;
      present[half] = in_tile < work.rows.rows;
      row[half] = work.rows.begin + in_tile;
      if (present[half]) position[half] = a.q_positions[row[half]];
      q[half] = present[half]
                    ? static_cast<const T*>(a.q) + row[half] * a.q_row + work.head * a.q_head
                    : nullptr;
    }
    warp.LoadRows(q[0], q[1]);
  }
  // Attends to the key tile at `at`, which lies in `stage`.
  __device__ __forceinline__ void Attend(const SegmentedArgs& a, const PrefillTile& work,
                                         const TileWalk& at, const SharedTiles<T, D>& shared,
                                         int stage) {
    const DeviceSegment& s = a.segment[at.segment];
    const int first = at.tile * kMatrixTileKeys;
    const bool causal = s.visible_to_group[work.rows.group] == Visibility::kCausal;
    warp.template Attend<kMatrixTileKeys>(
        &shared.k[stage][0][0], &shared.v[stage][0][0], a.scale * kLog2E, at.masked(),
        [&](int half, int key) {
          return first + key < s.keys && (!causal || s.positions[first + key] <= position[half]);
        });
  }
  // Writes the normalized rows and their log-sum-exps. After softmax.ReduceLanes().
  __device__ __forceinline__ void Store(const SegmentedArgs& a, int head) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!present[half]) continue;
      warp.WriteRow(half, a.out, a.out_is_float, row[half] * a.out_row + head * a.out_head);
      if (a.lse != nullptr && threadIdx.x % 4 == 0)
        a.lse[row[half] * a.lse_row + head] = warp.softmax.row[half].LogSumExp(a.scale);
    }
  }
};

template <typename T, int D>
__global__ void __launch_bounds__(kThreads)
    MatrixAttentionKernel(const __grid_constant__ SegmentedArgs a) {
  SharedTiles<T, D>& shared = *reinterpret_cast<SharedTiles<T, D>*>(SharedMemory());
  const PrefillTile work = PrefillTileAt(a, blockIdx.x, kMatrixTileRows);
  Consumer<T, D> consumer(a, work);
  TileWalk next{a.tile_counts + work.index * a.segments, a.segments};
  bool more = next.Next();
  if (more) CopyKeys<T, D>(a, next, work.kv_head, shared, 0);
  CpAsyncCommitGroup();
  for (int stage = 0; more; stage ^= 1) {
    const TileWalk now = next;
    more = next.Next();
    if (more) CopyKeys<T, D>(a, next, work.kv_head, shared, stage ^ 1);
    CpAsyncCommitGroup();
    CpAsyncWaitGroup<1>();
    __syncthreads();
    consumer.Attend(a, work, now, shared, stage);
    __syncthreads();  // the stage may be overwritten
  }
  consumer.warp.softmax.ReduceLanes();
  consumer.Store(a, work.head);
}

template <typename T, int D>
cudaError_t Run(const SegmentedArgs& args, cudaStream_t stream) {
  static_assert(sizeof(SharedTiles<T, D>) <= kSharedBytesEverywhere);
  const int64_t blocks = RowTiles(args.rows, args.group_split, kMatrixTileRows) * args.heads;
  return Launch(MatrixAttentionKernel<T, D>, dim3(static_cast<unsigned>(blocks)), kThreads,
                sizeof(SharedTiles<T, D>), stream, args);
}

}  // namespace

bool IsMatrixType(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

bool IsMatrixHeadDim(int64_t d) { return d == 64 || d == 80 || d == 96 || d == 128; }

bool MatrixAttentionTakes(const AttentionArgs& args) {
  if (!IsMatrixType(args.q.dtype) || !IsMatrixHeadDim(args.q.shape[2]) || !(args.scale > 0))
    return false;
  bool aligned = IsAligned16(args.q) && IsAligned16(args.out);
  for (const KeySegment& s : args.keys) {
    if (s.k.shape[0] > 0) aligned = aligned && IsAligned16(s.k) && IsAligned16(s.v);
  }
  return aligned;
}

cudaError_t MatrixAttention(const SegmentedArgs& args, cudaStream_t stream) {
  return WithMatrixElement(args.dtype, [&](auto element) {
    using T = decltype(element);
    switch (args.head_dim) {
      case 64:
        return Run<T, 64>(args, stream);
      case 80:
        return Run<T, 80>(args, stream);
      case 96:
        return Run<T, 96>(args, stream);
      case 128:
        return Run<T, 128>(args, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace apb::kernels::cuda
