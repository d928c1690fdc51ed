// Segmented FlashAttention for Hopper. A block takes 128 rows of one query head. The producer, one
// thread of the first warpgroup, copies key tiles to shared memory (TMA). The two consumers, the
// other warpgroups, have 64 rows each. A consumer starts the scores of the next key tile before the
// values of the current one, so that its softmax runs beside a product. The consumers take turns in
// starting products, so that the softmax of one also runs beside the products of the other. Bound
// by the tensor cores.
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
// Registers of a thread. The sum over the three warpgroups is at most the launch's, 3 x 168.
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
  float sums[kConsumers * kWarpgroup];  // for ComputeNow; never read
};

template <int D>
constexpr int kTileBytes = 128 * D * 2;  // of a tile of q, k or v
constexpr int kBlockBytes = 128 * kBlockColumns * 2;

// The stage of a turn in a ring of kStages, and the parity of its phase.
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

// The producer, one thread: copies the tile of queries and all key tiles.
template <typename T, int D>
__device__ __forceinline__ void Produce(const HopperArgs& args, HopperShared<T, D>& shared,
                                        const PrefillTile& work, TileWalk walk) {
  for (int turn = 0; walk.Next(); ++turn) {
    // Rows that see no key need no queries: nobody would wait for the copy, and the block could end
    // before it.
    if (turn == 0)
      CopyTile<T, D>(&shared.q[0][0][0], args.q, &shared.q_full, work.head, work.rows.begin);
    const int stage = StageOf(turn), last_parity = ParityOf(turn) ^ 1;
    const int64_t key = static_cast<int64_t>(walk.tile) * kHopperTileKeys;
    MbarrierWaitParity(&shared.k_empty[stage], last_parity);
    CopyTile<T, D>(&shared.k[stage][0][0][0], args.k[walk.segment], &shared.k_full[stage],
                   work.kv_head, key);
    MbarrierWaitParity(&shared.v_empty[stage], last_parity);
    CopyTile<T, D>(&shared.v[stage][0][0][0], args.v[walk.segment], &shared.v_full[stage],
                   work.kv_head, key);
  }
}

// One consumer: the 64 rows of a warpgroup, of which a thread has two, and their state.
template <typename T, int D>
struct Consumer {
  const SegmentedArgs& a;
  HopperShared<T, D>& shared;
  const RowTile& tile;
  int group_index;  // of this warpgroup among the consumers
  float out[D / 2] = {};
  float scores[64];
  uint32_t weights[8][4];  // of the previous key tile, as the left operand of the product with V
  SoftmaxRows softmax;
  int64_t row[2];
  int32_t position[2] = {0, 0};
  bool present[2];

  __device__ __forceinline__ Consumer(const SegmentedArgs& args, HopperShared<T, D>& memory,
                                      const RowTile& row_tile)
      : a(args), shared(memory), tile(row_tile) {
    // A shuffle tells the compiler that a warp's lanes agree.
    group_index = __shfl_sync(~0u, static_cast<int>(threadIdx.x / kWarpgroup), 0) - 1;
    const int first_row = group_index * 64 + threadIdx.x % kWarpgroup / kWarp * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_tile = first_row + threadIdx.x % kWarp / 4 + half * 8;
      present[half] = in_tile < tile.rows;
      row[half] = tile.begin + in_tile;
      if (present[half]) position[half] = a.q_positions[row[half]];
    }
  }

  // This warp has read its part of a stage. The last of the eight warps frees it.
  static __device__ __forceinline__ void Release(uint64_t* barrier) {
    if (threadIdx.x % kWarp == 0) MbarrierArrive(barrier);
  }
  // Starts scores = q k^T with the keys of a stage.
  __device__ __forceinline__ void StartScores(int stage) {
    const uint64_t q = KMajorDescriptor(&shared.q[0][group_index * 64][0]);
    const uint64_t k = KMajorDescriptor(&shared.k[stage][0][0][0]);
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
      const int at = kk / 4 * kBlockBytes + kk % 4 * 32;
      WgmmaSS<T>(scores, Advance(q, at), Advance(k, at), kk > 0);
    }
    WgmmaCommitGroup();
  }
  // Starts out += weights v with the values of a stage.
  __device__ __forceinline__ void StartValues(int stage) {
    const uint64_t v = MnMajorDescriptor(&shared.v[stage][0][0][0], kBlockBytes);
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) WgmmaRS<T>(out, weights[kk], Advance(v, kk * 2048));
    WgmmaCommitGroup();
  }
  __device__ __forceinline__ void Mask(const DeviceSegment& s, int first) {
    const bool causal = s.visible_to_group[tile.group] == Visibility::kCausal;
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
  // Turns the scores of the key tile at `walk` into weights. rescale: see SoftmaxRows::Update.
  __device__ __forceinline__ void UpdateSoftmax(const TileWalk& walk, float (&rescale)[2]) {
    if (walk.masked()) Mask(a.segment[walk.segment], walk.tile * kHopperTileKeys);
    softmax.Update(scores, a.scale * kLog2E, rescale);
  }
  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[kk][i] = PackPair<T>(scores[8 * kk + 2 * i], scores[8 * kk + 2 * i + 1]);
    }
  }

  // Computes the weights of the first key tile.
  __device__ __forceinline__ void FirstScores(const TileWalk& walk) {
    float rescale[2];  // of an output that is 0 yet
    MbarrierWaitParity(&shared.q_full, 0);
    MbarrierWaitParity(&shared.k_full[0], 0);
    WgmmaFence();
    StartScores(0);
    WgmmaWaitGroup<0>();
    WarpgroupFenceOperand(scores);
    Release(&shared.k_empty[0]);
    UpdateSoftmax(walk, rescale);
    PackWeights();
  }
  // Computes the weights of key tile number `turn` beside the values of the one before. Named
  // barrier 1 + i lets warpgroup i start products; it waits there as often as the other warpgroup
  // arrives.
  __device__ __forceinline__ void Turn(const TileWalk& walk, int turn, int turns) {
    const int k_stage = StageOf(turn), v_stage = StageOf(turn - 1);
    float rescale[2];
    MbarrierWaitParity(&shared.k_full[k_stage], ParityOf(turn));
    MbarrierWaitParity(&shared.v_full[v_stage], ParityOf(turn - 1));
    BarSync(1 + group_index, 2 * kWarpgroup);
    WarpgroupFenceOperand(scores);
    WgmmaFence();
    StartScores(k_stage);
    StartValues(v_stage);
    if (group_index == 0 || turn + 1 < turns) BarArrive(2 - group_index, 2 * kWarpgroup);
    WgmmaWaitGroup<1>();
    WarpgroupFenceOperand(scores);
    Release(&shared.k_empty[k_stage]);
    UpdateSoftmax(walk, rescale);
    ComputeNow(softmax.row[0].row_sum + softmax.row[1].row_sum,
               &shared.sums[threadIdx.x - kWarpgroup]);
    WgmmaWaitGroup<0>();
    WarpgroupFenceOperand(out);
    WarpgroupFenceOperand(weights);
    Release(&shared.v_empty[v_stage]);
#pragma unroll
    for (int i = 0; i < D / 2; ++i) out[i] *= rescale[i / 2 % 2];
    PackWeights();
  }
  // Adds the values of the last key tile.
  __device__ __forceinline__ void LastValues(int turns) {
    const int v_stage = StageOf(turns - 1);
    MbarrierWaitParity(&shared.v_full[v_stage], ParityOf(turns - 1));
    WarpgroupFenceOperand(out);
    WgmmaFence();
    StartValues(v_stage);
    WgmmaWaitGroup<0>();
    WarpgroupFenceOperand(out);
  }
  // Writes the normalized rows and their log-sum-exps. After softmax.ReduceLanes().
  __device__ __forceinline__ void Store(int head) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!present[half]) continue;
      const float normalizer = softmax.row[half].Normalizer();
      const int64_t at = row[half] * a.out_row + head * a.out_head + threadIdx.x % 4 * 2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        StorePair<T>(a.out, a.out_is_float, at + n * 8, out[4 * n + 2 * half] * normalizer,
                     out[4 * n + 2 * half + 1] * normalizer);
      }
      if (a.lse != nullptr && threadIdx.x % 4 == 0)
        a.lse[row[half] * a.lse_row + head] = softmax.row[half].LogSumExp(a.scale);
    }
  }
};

// The consumers: the warpgroups but the first.
template <typename T, int D>
__device__ __forceinline__ void Consume(const SegmentedArgs& a, HopperShared<T, D>& shared,
                                        const PrefillTile& work, TileWalk walk) {
  Consumer<T, D> consumer(a, shared, work.rows);
  int turns = 0;  // key tiles
  for (int i = 0; i < a.segments; ++i) turns += walk.counts[i].seen;
  turns = __shfl_sync(~0u, turns, 0);
  if (turns > 0) {
    walk.Next();
    consumer.FirstScores(walk);
    // Lets warpgroup 0 take the first turn.
    if (consumer.group_index == 1 && turns > 1) BarArrive(1, 2 * kWarpgroup);
    for (int turn = 1; turn < turns; ++turn) {
      walk.Next();
      consumer.Turn(walk, turn, turns);
    }
    consumer.LastValues(turns);
  }
  consumer.softmax.ReduceLanes();
  consumer.Store(work.head);
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    HopperAttentionKernel(const __grid_constant__ HopperArgs args) {
  const SegmentedArgs& a = args.a;
  // Swizzled blocks begin on multiples of 1024 bytes.
  HopperShared<T, D>& shared = *reinterpret_cast<HopperShared<T, D>*>(
      SharedMemory() + (1024 - SharedAddress(SharedMemory()) % 1024) % 1024);
  const PrefillTile work = PrefillTileAt(a, blockIdx.x, kHopperTileRows);
  const TileWalk walk{a.tile_counts + work.index * a.segments, a.segments};

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
    if (threadIdx.x == 0) Produce<T, D>(args, shared, work, walk);
  } else {
    SetmaxnregInc<kConsumerRegisters>();
    Consume<T, D>(a, shared, work, walk);
  }
}

// Looks up the driver's function at run time, so that the program also starts without a driver.
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

// Makes the map of a [rows, heads, d] tensor of bf16 or f16, with strides in elements, for copies
// of boxes [128, 1, 64].
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
