// Segmented FlashAttention for Hopper. A block takes 128 rows of one query head. One thread of the
// first warpgroup copies key tiles to shared memory (TMA); the other two warpgroups have 64 rows
// each. A warpgroup starts the scores of the next key tile before the values of this one, so that
// its softmax runs beside a product, and the two take turns in starting products, so that one's
// softmax also runs beside the other's products.
#include <cuda.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace apb::kernels::cuda {
namespace {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStages = 2;
constexpr int kBlockColumns = 64;  // of a swizzled block: 128 bytes
// Registers of a thread: the sum over the warpgroups is at most what the launch has, 3 * 168.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

static_assert(kHopperTileRows == kConsumers * 64 && kHopperTileKeys == 128);

struct HopperArgs {
  SegmentedArgs a;
  CUtensorMap q;
  CUtensorMap k[kMaxSegments];
  CUtensorMap v[kMaxSegments];
};

template <typename T, int D>
struct HopperShared {
  static constexpr int kBlocks = D / kBlockColumns;
  T q[kBlocks][kHopperTileRows][kBlockColumns];
  T k[kStages][kBlocks][kHopperTileKeys][kBlockColumns];
  T v[kStages][kBlocks][kHopperTileKeys][kBlockColumns];
  uint64_t q_full, k_full[kStages], v_full[kStages], k_empty[kStages], v_empty[kStages];
  float sums[kConsumers * kWarpgroup];  // see ComputeNow
};

template <int D>
constexpr int kTileBytes = 128 * D * 2;  // of q, k and v alike
constexpr int kBlockBytes = 128 * kBlockColumns * 2;

// Where a ring of kStages is: the stage of turn i, and the parity of its phase.
__device__ __forceinline__ int StageOf(int turn) { return turn % kStages; }
__device__ __forceinline__ int ParityOf(int turn) { return turn / kStages % 2; }

template <typename T, int D>
__device__ __forceinline__ void CopyTile(T* target, const CUtensorMap& map, uint64_t* barrier,
                                         int head, int64_t row) {
  MbarrierArriveExpectTx(barrier, kTileBytes<D>);
#pragma unroll
  for (int block = 0; block < D / kBlockColumns; ++block) {
    TmaLoad3d(target + block * 128 * kBlockColumns, map, barrier, block * kBlockColumns, head,
              static_cast<int>(row));
  }
}

// The producer: one thread.
template <typename T, int D>
__device__ __forceinline__ void Produce(const HopperArgs& args, HopperShared<T, D>& shared,
                                        const RowTile& tile, TileWalk walk, int head, int kv_head) {
  for (int turn = 0; walk.Next(); ++turn) {
    // Not for rows that see no key: nobody would wait for the copy, and the block could end before.
    if (turn == 0) CopyTile<T, D>(&shared.q[0][0][0], args.q, &shared.q_full, head, tile.begin);
    const int stage = StageOf(turn), last_parity = ParityOf(turn) ^ 1;
    const int64_t key = static_cast<int64_t>(walk.tile) * kHopperTileKeys;
    MbarrierWaitParity(&shared.k_empty[stage], last_parity);
    CopyTile<T, D>(&shared.k[stage][0][0][0], args.k[walk.segment], &shared.k_full[stage], kv_head,
                   key);
    MbarrierWaitParity(&shared.v_empty[stage], last_parity);
    CopyTile<T, D>(&shared.v[stage][0][0][0], args.v[walk.segment], &shared.v_full[stage], kv_head,
                   key);
  }
}

// A consumer's state: 64 rows of a warpgroup, of which a thread has two.
template <typename T, int D>
struct Consumer {
  float out[D / 2] = {};
  float scores[64];
  uint32_t weights[8][4];  // of the keys before, as the left operand of the product with V
  SoftmaxState softmax;
  int64_t row[2];
  int32_t position[2] = {0, 0};
  bool present[2];

  // One warp has read its part of a tile; the last of the eight frees the stage.
  static __device__ __forceinline__ void Release(uint64_t* barrier) {
    if (threadIdx.x % kWarp == 0) MbarrierArrive(barrier);
  }
  // Starts scores = q k^T.
  __device__ __forceinline__ void StartScores(uint64_t q, uint64_t k) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
      const int at = kk / 4 * kBlockBytes + kk % 4 * 32;
      WgmmaSS<T>(scores, Advance(q, at), Advance(k, at), kk > 0);
    }
    WgmmaCommitGroup();
  }
  // Starts out += weights v.
  __device__ __forceinline__ void StartValues(uint64_t v) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) WgmmaRS<T>(out, weights[kk], Advance(v, kk * 2048));
    WgmmaCommitGroup();
  }
  __device__ __forceinline__ void Mask(const DeviceSegment& s, int group, int first) {
    const bool causal = s.visible_to_group[group] == Visibility::kCausal;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first + n * 8 + threadIdx.x % 4 * 2 + i;
        const bool there = key < s.keys;
        const int32_t at = causal && there ? s.positions[key] : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!there || (causal && at > position[half])) scores[4 * n + 2 * half + i] = -INFINITY;
        }
      }
    }
  }
  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[kk][i] = PackPair<T>(scores[8 * kk + 2 * i], scores[8 * kk + 2 * i + 1]);
    }
  }
};

template <typename T, int D>
__device__ __forceinline__ void Consume(const SegmentedArgs& a, HopperShared<T, D>& shared,
                                        const RowTile& tile, TileWalk walk, int head) {
  // (By shuffles, so that the compiler knows that a warp's lanes agree.)
  const int group_index = __shfl_sync(~0u, static_cast<int>(threadIdx.x / kWarpgroup), 0) - 1;
  const int first_row = group_index * 64 + threadIdx.x % kWarpgroup / kWarp * 16;
  Consumer<T, D> c;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int in_tile = first_row + threadIdx.x % kWarp / 4 + half * 8;
    c.present[half] = in_tile < tile.rows;
    c.row[half] = tile.begin + in_tile;
    if (c.present[half]) c.position[half] = a.q_positions[c.row[half]];
  }
  const float scale_log2 = a.scale * kLog2E;
  const auto update_softmax = [&](const TileWalk& at, float(&rescale)[2]) {
    if (at.masked()) c.Mask(a.segment[at.segment], tile.group, at.tile * kHopperTileKeys);
    c.softmax.Update(c.scores, scale_log2, rescale);
  };
  int turns = 0;
  for (int i = 0; i < a.segments; ++i) turns += walk.counts[i].seen;
  turns = __shfl_sync(~0u, turns, 0);
  if (turns > 0) {
    walk.Next();
    MbarrierWaitParity(&shared.q_full, 0);
    const uint64_t q = KMajorDescriptor(&shared.q[0][group_index * 64][0]);
    float rescale[2];
    MbarrierWaitParity(&shared.k_full[0], 0);
    WgmmaFence();
    c.StartScores(q, KMajorDescriptor(&shared.k[0][0][0][0]));
    WgmmaWaitGroup<0>();
    WarpgroupFenceOperand(c.scores);
    c.Release(&shared.k_empty[0]);
    update_softmax(walk, rescale);
    c.PackWeights();
    // Named barrier 1 + i: warpgroup i may start products. Each waits as often as the other
    // arrives.
    const int mine = 1 + group_index, others = 2 - group_index;
    if (group_index == 1 && turns > 1) BarArrive(others, 2 * kWarpgroup);
    for (int turn = 1; turn < turns; ++turn) {
      walk.Next();
      const int k_stage = StageOf(turn), v_stage = StageOf(turn - 1);
      MbarrierWaitParity(&shared.k_full[k_stage], ParityOf(turn));
      MbarrierWaitParity(&shared.v_full[v_stage], ParityOf(turn - 1));
      BarSync(mine, 2 * kWarpgroup);
      WarpgroupFenceOperand(c.scores);
      WgmmaFence();
      c.StartScores(q, KMajorDescriptor(&shared.k[k_stage][0][0][0]));
      c.StartValues(MnMajorDescriptor(&shared.v[v_stage][0][0][0], kBlockBytes));
      if (group_index == 0 || turn + 1 < turns) BarArrive(others, 2 * kWarpgroup);
      WgmmaWaitGroup<1>();
      WarpgroupFenceOperand(c.scores);
      c.Release(&shared.k_empty[k_stage]);
      update_softmax(walk, rescale);
      ComputeNow(c.softmax.row_sum[0] + c.softmax.row_sum[1],
                 &shared.sums[threadIdx.x - kWarpgroup]);
      WgmmaWaitGroup<0>();
      WarpgroupFenceOperand(c.out);
      WarpgroupFenceOperand(c.weights);
      c.Release(&shared.v_empty[v_stage]);
#pragma unroll
      for (int i = 0; i < D / 2; ++i) c.out[i] *= rescale[i / 2 % 2];
      c.PackWeights();
    }
    const int v_stage = StageOf(turns - 1);
    MbarrierWaitParity(&shared.v_full[v_stage], ParityOf(turns - 1));
    WarpgroupFenceOperand(c.out);
    WgmmaFence();
    c.StartValues(MnMajorDescriptor(&shared.v[v_stage][0][0][0], kBlockBytes));
    WgmmaWaitGroup<0>();
    WarpgroupFenceOperand(c.out);
  }
  c.softmax.ReduceLanes();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!c.present[half]) continue;
    const float inverse = c.softmax.Inverse(half);
    const int64_t at = c.row[half] * a.out_row + head * a.out_head + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      StorePair<T>(a.out, a.out_is_float, at + n * 8, c.out[4 * n + 2 * half] * inverse,
                   c.out[4 * n + 2 * half + 1] * inverse);
    }
    if (a.lse != nullptr && threadIdx.x % 4 == 0)
      a.lse[c.row[half] * a.lse_row + head] = c.softmax.LogSum(half, scale_log2);
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    HopperAttentionKernel(const __grid_constant__ HopperArgs args) {
  const SegmentedArgs& a = args.a;
  // Swizzled blocks lie on multiples of 1024 bytes.
  HopperShared<T, D>& shared = *reinterpret_cast<HopperShared<T, D>*>(
      SharedMemory() + (1024 - SharedAddress(SharedMemory()) % 1024) % 1024);
  // Heads of a group run side by side, since they read the same keys; late rows come first, since
  // they see most.
  const int group = a.heads / a.kv_heads;
  const int64_t tiles = RowTiles(a.rows, a.group_split, kHopperTileRows);
  const int64_t tile_index = tiles - 1 - blockIdx.x / group % tiles;
  const int kv_head = static_cast<int>(blockIdx.x / group / tiles);
  const int head = kv_head * group + blockIdx.x % group;
  const RowTile tile = RowTileAt(tile_index, a.rows, a.group_split, kHopperTileRows);
  const TileWalk walk{a.tile_counts + tile_index * a.segments, a.segments};

  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = kConsumers * kWarpgroup / kWarp;
    MbarrierInit(&shared.q_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      MbarrierInit(&shared.k_full[stage], 1);
      MbarrierInit(&shared.v_full[stage], 1);
      MbarrierInit(&shared.k_empty[stage], kConsumerWarps);
      MbarrierInit(&shared.v_empty[stage], kConsumerWarps);
    }
    FenceMbarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    SetmaxnregDec<kProducerRegisters>();
    if (threadIdx.x == 0) Produce<T, D>(args, shared, tile, walk, head, kv_head);
  } else {
    SetmaxnregInc<kConsumerRegisters>();
    Consume<T, D>(a, shared, tile, walk, head);
  }
}

// The driver's function, found at run time: the program starts without a driver.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
EncodeTiled FindEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  constexpr unsigned kCuda12 = 12000;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kCuda12,
                                       cudaEnableDefault, &result) != cudaSuccess ||
      result != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeTiled>(function);
}

// [rows, heads, d] bf16 or f16 with strides in elements, copied in boxes of [128, 1, 64].
cudaError_t MakeMap(DType dtype, const void* data, int64_t rows, int64_t heads, int64_t d,
                    int64_t row_stride, int64_t head_stride, CUtensorMap& map) {
  static const EncodeTiled encode = FindEncodeTiled();
  if (encode == nullptr) return cudaErrorSymbolNotFound;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(d), static_cast<cuuint64_t>(heads),
                                 static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(head_stride) * 2,
                                 static_cast<cuuint64_t>(row_stride) * 2};
  const cuuint32_t box[3] = {kBlockColumns, 1, 128}, steps[3] = {1, 1, 1};
  const CUtensorMapDataType type =
      dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(&map, type, 3, const_cast<void*>(data), extents, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename T, int D>
cudaError_t Run(const HopperArgs& args, cudaStream_t stream) {
  const int64_t blocks = RowTiles(args.a.rows, args.a.group_split, kHopperTileRows) * args.a.heads;
  return Launch(HopperAttentionKernel<T, D>, dim3(static_cast<unsigned>(blocks)), kThreads,
                sizeof(HopperShared<T, D>) + 1024, stream, args);
}

}  // namespace

bool IsHopperHeadDim(int64_t d) { return d == 64 || d == 128; }

cudaError_t HopperAttention(const SegmentedArgs& a, cudaStream_t stream) {
  HopperArgs args{};
  args.a = a;
  cudaError_t error = MakeMap(a.dtype, a.q, a.rows, a.heads, a.head_dim, a.q_row, a.q_head, args.q);
  for (int i = 0; i < a.segments && error == cudaSuccess; ++i) {
    const DeviceSegment& s = a.segment[i];
    error = MakeMap(a.dtype, s.k, s.keys, a.kv_heads, a.head_dim, s.k_row, s.k_head, args.k[i]);
    if (error == cudaSuccess)
      error = MakeMap(a.dtype, s.v, s.keys, a.kv_heads, a.head_dim, s.v_row, s.v_head, args.v[i]);
  }
  if (error != cudaSuccess) return error;
  return WithMatrixElement(a.dtype, [&](auto element) {
    using T = decltype(element);
    return a.head_dim == 64 ? Run<T, 64>(args, stream) : Run<T, 128>(args, stream);
  });
}

}  // namespace apb::kernels::cuda
