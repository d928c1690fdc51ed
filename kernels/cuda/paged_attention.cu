// Attention over the paged cache (decode and the query pass), split over the keys so that one long
// sequence fills the device. All query heads of a KV head and all rows of a sequence are packed
// into the rows of one tile, so keys are read once for them. With few packed rows (decode) the
// warps of a block share the rows and take different keys, each with its own ring of copies and no
// barrier; with many (the query pass, follow-up turns) they share the keys and take different rows.
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.h"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxSequences = 128;  // of one launch

// Rows of one sequence that a launch takes.
struct LaunchedRows {
  int32_t begin, count;
  int32_t sequence;  // of the call
};

struct PagedArgs {
  const void* q;  // of one type with both caches
  int64_t q_row, q_head;
  const int32_t* q_positions;
  const void* k_cache;
  const void* v_cache;
  int64_t block_stride, head_stride, slot_stride;  // of both caches
  int block_size;
  void* out;
  int64_t out_row, out_head;
  float* lse;  // may be null
  int64_t lse_row;
  float* partial_outs;  // [units, kv_heads, rows of a tile, d], of sequences with several splits
  float* partial_lses;  // [units, kv_heads, rows of a tile]
  float scale;
  bool out_is_float;
  int group, parallel_blocks;
  const PagedSequence* sequences;  // of the call
  int launched;                    // sequences of this launch
  LaunchedRows rows[kMaxSequences];
};

// What a block works on: a row tile and a split of a sequence.
struct Unit {
  const int32_t* block_table;
  const int32_t* slot_positions;  // from causal_begin on
  int slot_count, causal_begin;
  int row_begin, row_count;
  int row_tile, split;
  int splits, keys_per_split;
};

__device__ __forceinline__ PagedSplit SplitOf(const PagedArgs& a, const LaunchedRows& rows) {
  return SplitSequence(rows.count, static_cast<int>(a.sequences[rows.sequence].slot_count), a.group,
                       static_cast<int>(gridDim.y), a.parallel_blocks);
}

// Unit number `index` of the launch. The slots that decide how many units a sequence has are known
// on the device only, so each warp counts them: a lane for a sequence. The splits of a tile lie
// together. False if there are not so many units: the grid is for the most that there can be.
__device__ __forceinline__ bool FindUnit(const PagedArgs& a, int index, Unit& unit) {
  const int lane = threadIdx.x % kWarp;
  for (int first = 0; first < a.launched; first += kWarp) {
    int end = 0;  // units from sequence `first` to the end of this lane's
    if (first + lane < a.launched) {
      const PagedSplit split = SplitOf(a, a.rows[first + lane]);
      end = split.row_tiles * split.splits;
    }
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += other;
    }
    const int owner = __popc(__ballot_sync(~0u, end <= index));
    const int before = __shfl_sync(~0u, end, owner == 0 ? 0 : owner - 1);
    if (owner < kWarp) {
      const LaunchedRows& rows = a.rows[first + owner];
      const PagedSequence& s = a.sequences[rows.sequence];
      const PagedSplit split = SplitOf(a, rows);
      const int local = owner == 0 ? index : index - before;
      unit.block_table = s.block_table;
      unit.slot_positions = s.slot_positions;
      unit.slot_count = static_cast<int>(s.slot_count);
      unit.causal_begin = static_cast<int>(min(s.causal_begin, s.slot_count));
      unit.row_begin = rows.begin;
      unit.row_count = rows.count;
      unit.row_tile = local / split.splits;
      unit.split = local % split.splits;
      unit.splits = split.splits;
      unit.keys_per_split = split.keys_per_split;
      return true;
    }
    index -= before;  // owner - 1 is the last lane
  }
  return false;
}

// Where packed row `packed` of the sequence is; -1 if it has fewer.
__device__ int64_t RowOf(const PagedArgs& a, const Unit& unit, int packed) {
  return packed < unit.row_count * a.group ? unit.row_begin + packed / a.group : -1;
}

// Where the result of a packed row goes: to its place, or among the partial results.
struct Target {
  void* out;
  bool is_float;
  int64_t at;
  float* lse;  // may be null
};

template <int kRows>
__device__ Target TargetOf(const PagedArgs& a, const Unit& unit, int64_t row, int in_tile,
                           int packed, int d) {
  const int kv_head = blockIdx.y, head = kv_head * a.group + packed % a.group;
  if (unit.splits == 1) {
    return {a.out, a.out_is_float, row * a.out_row + head * a.out_head,
            a.lse == nullptr ? nullptr : a.lse + row * a.lse_row + head};
  }
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * gridDim.y + kv_head) * kRows + in_tile;
  return {a.partial_outs, true, at * d, a.partial_lses + at};
}

template <typename T, int D, bool kFew>
struct PagedShape {
  static constexpr int kRows = kFew ? kFewRows : kManyRows;
  static constexpr int kTileKeys = kFew ? 16 : kPagedTileKeys;  // of one copy
  static constexpr int kStages = kFew && D < 128 ? 3 : 2;
  static constexpr int kCopiers = kFew ? kWarp : kThreads;  // threads that copy a tile together
  static constexpr int kRings = kThreads / kCopiers;
  struct Tile {
    T k[kTileKeys][WarpAttention<T, D>::kStride];
    T v[kTileKeys][WarpAttention<T, D>::kStride];
  };
  struct Combined {  // the warps' results, where they had different keys
    float out[kWarps][kFewRows][D];
    float row_max[kWarps][kFewRows], row_sum[kWarps][kFewRows];
  };
  union Shared {
    Tile tile[kRings][kStages];
    Combined combined;
  };
  static_assert(sizeof(Shared) <= kSharedBytesEverywhere);
};

// Element offsets of a tile's keys in the cache: key i is kept by lane i % 32 of every warp.
template <int kTileKeys>
struct KeyOffsets {
  static constexpr int kEach = (kTileKeys + kWarp - 1) / kWarp;
  int64_t mine[kEach];

  __device__ __forceinline__ void Find(const PagedArgs& a, const Unit& unit, int first, int end) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int slot = first + e * kWarp + static_cast<int>(threadIdx.x % kWarp);
      mine[e] = 0;
      if (slot < end) {
        mine[e] = unit.block_table[slot / a.block_size] * a.block_stride +
                  slot % a.block_size * a.slot_stride;
      }
    }
  }
  // All lanes call it, each with its own key.
  __device__ __forceinline__ int64_t Of(int key) const {
    int64_t offset = __shfl_sync(~0u, mine[0], key % kWarp);
#pragma unroll
    for (int e = 1; e < kEach; ++e) {
      const int64_t other = __shfl_sync(~0u, mine[e], key % kWarp);
      if (key / kWarp == e) offset = other;
    }
    return offset;
  }
};

// Combines the results of the block's warps, which had different keys of the same few rows, and
// writes them. `combined` lies where the tiles were.
template <typename T, int D, typename Combined>
__device__ __forceinline__ void CombineWarps(const PagedArgs& a, const Unit& unit,
                                             const WarpAttention<T, D>& warp, int first_row,
                                             float scale_log2, Combined& combined) {
  const int lane = threadIdx.x % kWarp, warp_index = threadIdx.x / kWarp;
  CpAsyncWaitGroup<0>();
  __syncthreads();  // the tiles' memory is free
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first_row + half * 8;
    combined.row_max[warp_index][r] = warp.softmax.row_max[half];
    combined.row_sum[warp_index][r] = warp.softmax.row_sum[half];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      combined.out[warp_index][r][n * 8 + lane % 4 * 2] = warp.out[n][2 * half];
      combined.out[warp_index][r][n * 8 + lane % 4 * 2 + 1] = warp.out[n][2 * half + 1];
    }
  }
  __syncthreads();
  // Eight threads for a row.
  const int r = threadIdx.x / 8, mine = unit.row_tile * kFewRows + r;
  const int64_t to_row = RowOf(a, unit, mine);
  if (to_row < 0) return;
  SoftmaxState all;
  all.row_max[0] = combined.row_max[0][r];
  for (int w = 1; w < kWarps; ++w) all.row_max[0] = fmaxf(all.row_max[0], combined.row_max[w][r]);
  float weight[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    weight[w] = all.row_max[0] == -INFINITY
                    ? 0.0f
                    : Exp2((combined.row_max[w][r] - all.row_max[0]) * scale_log2);
    all.row_sum[0] += weight[w] * combined.row_sum[w][r];
  }
  const Target to = TargetOf<kFewRows>(a, unit, to_row, r, mine, D);
  const float inverse = all.Inverse(0);
  for (int c = threadIdx.x % 8 * 2; c < D; c += 16) {
    float pair[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      pair[0] += weight[w] * combined.out[w][r][c];
      pair[1] += weight[w] * combined.out[w][r][c + 1];
    }
    StorePair<T>(to.out, to.is_float, to.at + c, pair[0] * inverse, pair[1] * inverse);
  }
  if (to.lse != nullptr && threadIdx.x % 8 == 0) *to.lse = all.LogSum(0, scale_log2);
}

template <typename T, int D, bool kFew>
__global__ void __launch_bounds__(kThreads, 2) PagedKernel(const __grid_constant__ PagedArgs a) {
  using Shape = PagedShape<T, D, kFew>;
  auto& shared = *reinterpret_cast<typename Shape::Shared*>(SharedMemory());
  Unit unit;
  if (!FindUnit(a, static_cast<int>(blockIdx.x), unit)) return;
  const int kv_head = blockIdx.y, lane = threadIdx.x % kWarp, warp_index = threadIdx.x / kWarp;
  const int begin = unit.split * unit.keys_per_split;
  const int end = min(begin + unit.keys_per_split, unit.slot_count);

  WarpAttention<T, D> warp;
  int in_tile[2], packed[2];
  int64_t row[2];
  int32_t position[2] = {0, 0};
  const T* q[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    in_tile[half] = (kFew ? 0 : warp_index * 16) + lane / 4 + half * 8;
    packed[half] = unit.row_tile * Shape::kRows + in_tile[half];
    row[half] = RowOf(a, unit, packed[half]);
    q[half] = nullptr;
    if (row[half] < 0) continue;
    position[half] = a.q_positions[row[half]];
    q[half] = static_cast<const T*>(a.q) + row[half] * a.q_row +
              (kv_head * a.group + packed[half] % a.group) * a.q_head;
  }
  warp.LoadRows(q[0], q[1]);

  // This thread's tiles: number ring, ring + kRings, ... of the split.
  const int ring = kFew ? warp_index : 0, copier = threadIdx.x % Shape::kCopiers;
  constexpr int kStep = Shape::kRings * Shape::kTileKeys;
  const T* k_head = static_cast<const T*>(a.k_cache) + kv_head * a.head_stride;
  const T* v_head = static_cast<const T*>(a.v_cache) + kv_head * a.head_stride;
  KeyOffsets<Shape::kTileKeys> offsets;  // of the next tile to copy
  int to_copy = begin + ring * Shape::kTileKeys;
  offsets.Find(a, unit, to_copy, end);
  const auto copy_next = [&](int stage) {
    if (to_copy < end) {
      constexpr int kChunks = D / 8;
#pragma unroll
      for (int i = 0; i < Shape::kTileKeys * kChunks / Shape::kCopiers; ++i) {
        const int chunk = i * Shape::kCopiers + copier, key = chunk / kChunks;
        const int c = chunk % kChunks * 8;
        const int64_t from = offsets.Of(key) + c;
        const bool valid = to_copy + key < end;
        CpAsync16(&shared.tile[ring][stage].k[key][c], k_head + (valid ? from : 0), valid);
        CpAsync16(&shared.tile[ring][stage].v[key][c], v_head + (valid ? from : 0), valid);
      }
      to_copy += kStep;
      offsets.Find(a, unit, to_copy, end);  // read now, wanted in the next call
    }
    CpAsyncCommitGroup();
  };
  const auto sync_copiers = [] {
    if (kFew) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };

  const float scale_log2 = a.scale * kLog2E;
#pragma unroll
  for (int stage = 0; stage + 1 < Shape::kStages; ++stage) copy_next(stage);
  int stage = 0;
  for (int first = begin + ring * Shape::kTileKeys; first < end; first += kStep) {
    // The stage that was read last is free: all copiers have passed the end of that turn.
    copy_next((stage + Shape::kStages - 1) % Shape::kStages);
    CpAsyncWaitGroup<Shape::kStages - 1>();
    sync_copiers();
    const bool masked = first + Shape::kTileKeys > min(end, unit.causal_begin);
    warp.template Attend<Shape::kTileKeys>(
        &shared.tile[ring][stage].k[0][0], &shared.tile[ring][stage].v[0][0], scale_log2, masked,
        [&](int half, int key) {
          const int slot = first + key;
          return slot < end && (slot < unit.causal_begin ||
                                unit.slot_positions[slot - unit.causal_begin] <= position[half]);
        });
    sync_copiers();
    stage = (stage + 1) % Shape::kStages;
  }

  warp.softmax.ReduceLanes();
  if constexpr (!kFew) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row[half] < 0) continue;
      const Target to = TargetOf<Shape::kRows>(a, unit, row[half], in_tile[half], packed[half], D);
      warp.WriteRow(half, to.out, to.is_float, to.at);
      if (to.lse != nullptr && lane % 4 == 0) *to.lse = warp.softmax.LogSum(half, scale_log2);
    }
  } else {
    CombineWarps<T, D>(a, unit, warp, lane / 4, scale_log2, shared.combined);
  }
}

// Combines the splits of each row tile. One block for a unit; the first split's does the work, a
// warp for a row.
template <typename T, int D, int kRows>
__global__ void __launch_bounds__(kThreads)
    CombineSplitsKernel(const __grid_constant__ PagedArgs a) {
  Unit unit;
  if (!FindUnit(a, static_cast<int>(blockIdx.x), unit)) return;
  if (unit.split != 0 || unit.splits == 1) return;
  const int lane = threadIdx.x % kWarp;
  for (int r = threadIdx.x / kWarp; r < kRows; r += kWarps) {
    const int packed = unit.row_tile * kRows + r;
    const int64_t row = RowOf(a, unit, packed);
    if (row < 0) return;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kRows;  // from a split to the next
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * kRows + r;
    const float* lses = a.partial_lses + first;
    float row_max = -INFINITY;
    for (int i = 0; i < unit.splits; ++i) row_max = fmaxf(row_max, lses[i * step]);
    float total = 0, sum[D / 16] = {};  // lane's dimensions: 2 lane, 2 lane + 1, then 64 further on
    for (int i = 0; i < unit.splits && row_max != -INFINITY; ++i) {
      const float weight = Exp2((lses[i * step] - row_max) * kLog2E);
      total += weight;
      const float* from = a.partial_outs + (first + i * step) * D;
#pragma unroll
      for (int c = 0; c < D; c += 2 * kWarp) {
        if (c + 2 * lane < D) {
          sum[c / kWarp] += weight * from[c + 2 * lane];
          sum[c / kWarp + 1] += weight * from[c + 2 * lane + 1];
        }
      }
    }
    const float inverse = total > 0 ? 1.0f / total : 0.0f;
    const int head = blockIdx.y * a.group + packed % a.group;
#pragma unroll
    for (int c = 0; c < D; c += 2 * kWarp) {
      if (c + 2 * lane < D) {
        StorePair<T>(a.out, a.out_is_float, row * a.out_row + head * a.out_head + c + 2 * lane,
                     sum[c / kWarp] * inverse, sum[c / kWarp + 1] * inverse);
      }
    }
    if (a.lse != nullptr && lane == 0)
      a.lse[row * a.lse_row + head] = total > 0 ? row_max + logf(total) : -INFINITY;
  }
}

template <typename T, int D, bool kFew>
cudaError_t Run(const PagedArgs& args, int units, int kv_heads, bool any_split,
                cudaStream_t stream) {
  using Shape = PagedShape<T, D, kFew>;
  const dim3 grid(static_cast<unsigned>(units), static_cast<unsigned>(kv_heads));
  const cudaError_t error =
      Launch(PagedKernel<T, D, kFew>, grid, kThreads, sizeof(typename Shape::Shared), stream, args);
  if (error != cudaSuccess || !any_split) return error;
  return Launch(CombineSplitsKernel<T, D, Shape::kRows>, grid, kThreads, 0, stream, args);
}

template <typename T, bool kFew>
cudaError_t RunHeadDim(int64_t head_dim, const PagedArgs& args, int units, int kv_heads,
                       bool any_split, cudaStream_t stream) {
  switch (head_dim) {
    case 64:
      return Run<T, 64, kFew>(args, units, kv_heads, any_split, stream);
    case 80:
      return Run<T, 80, kFew>(args, units, kv_heads, any_split, stream);
    case 96:
      return Run<T, 96, kFew>(args, units, kv_heads, any_split, stream);
    case 128:
      return Run<T, 128, kFew>(args, units, kv_heads, any_split, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

// The sequences of one launch: all of few packed rows or all of many.
struct PagedLaunch {
  bool few;
  PagedUnitBound bound;
  std::vector<LaunchedRows> rows = {};
  int64_t partial_rows(int64_t kv_heads) const {
    return bound.any_split() ? bound.units() * kv_heads * (few ? kFewRows : kManyRows) : 0;
  }
};

int ParallelBlocks(int multiprocessors) { return 4 * multiprocessors; }

std::vector<PagedLaunch> PlanLaunches(const PagedAttentionArgs& a, int multiprocessors) {
  const int kv_heads = static_cast<int>(a.k_cache.shape[1]);
  const int group = static_cast<int>(a.q.shape[1]) / kv_heads;
  const PagedUnitBound nothing{.total_slots = a.total_slots,
                               .group = group,
                               .kv_heads = kv_heads,
                               .parallel_blocks = ParallelBlocks(multiprocessors)};
  std::vector<PagedLaunch> launches;
  for (const bool few : {true, false}) {
    bool open = false;  // whether the last launch takes more
    for (size_t i = 0; i < a.rows.size(); ++i) {
      const PagedRows& rows = a.rows[i];
      if (rows.count == 0 || (rows.count * group <= kFewRows) != few) continue;
      if (!open || launches.back().rows.size() == kMaxSequences) {
        launches.push_back({.few = few, .bound = nothing});
        open = true;
      }
      launches.back().rows.push_back({static_cast<int32_t>(rows.begin),
                                      static_cast<int32_t>(rows.count), static_cast<int32_t>(i)});
      launches.back().bound.Add(static_cast<int>(rows.count));
    }
  }
  return launches;
}

}  // namespace

bool MatrixPagedAttentionTakes(const PagedAttentionArgs& a) {
  return IsMatrixType(a.q.dtype) && IsMatrixHeadDim(a.q.shape[2]) && a.scale > 0 &&
         IsAligned16(a.q) && IsAligned16(a.k_cache) && IsAligned16(a.v_cache) && IsAligned16(a.out);
}

size_t PagedScratchBytes(const PagedAttentionArgs& a, int multiprocessors) {
  int64_t rows = 0;
  for (const PagedLaunch& launch : PlanLaunches(a, multiprocessors))
    rows = std::max(rows, launch.partial_rows(a.k_cache.shape[1]));
  return rows * (a.q.shape[2] + 1) * sizeof(float);
}

cudaError_t MatrixPagedAttention(const PagedAttentionArgs& a, int multiprocessors, void* scratch,
                                 cudaStream_t stream) {
  const int kv_heads = static_cast<int>(a.k_cache.shape[1]);
  for (const PagedLaunch& launch : PlanLaunches(a, multiprocessors)) {
    PagedArgs d{};
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
    d.partial_outs = static_cast<float*>(scratch);
    d.partial_lses = d.partial_outs + launch.partial_rows(kv_heads) * a.q.shape[2];
    d.scale = a.scale;
    d.out_is_float = a.out.dtype == DType::kF32;
    d.group = static_cast<int>(a.q.shape[1]) / kv_heads;
    d.parallel_blocks = ParallelBlocks(multiprocessors);
    d.sequences = a.sequences;
    d.launched = static_cast<int>(launch.rows.size());
    std::copy(launch.rows.begin(), launch.rows.end(), d.rows);
    const int units = static_cast<int>(launch.bound.units());
    const bool any_split = launch.bound.any_split();
    const cudaError_t error = WithMatrixElement(a.q.dtype, [&](auto element) {
      const auto run =
          launch.few ? RunHeadDim<decltype(element), true> : RunHeadDim<decltype(element), false>;
      return run(a.q.shape[2], d, units, kv_heads, any_split, stream);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace apb::kernels::cuda
