// The arguments of the paged attention kernels, and the functions by which a thread block finds its
// work tile and the places of its rows.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/paged/work_tiles.h"

namespace apb::kernels::cuda::paged {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxSequences = 128;  // of one launch

// The tokens of one sequence in a launch.
struct LaunchedRows {
  int32_t begin, count;
  int32_t sequence;  // index into Params::sequences
};

// Strides are in elements. q and both caches have the kernel's type T.
struct Params {
  const void* q;
  int64_t q_row, q_head;
  const int32_t* q_positions;
  const void* k_cache;
  const void* v_cache;
  int64_t block_stride, head_stride, slot_stride;  // of both caches
  int block_size;                                  // slots of a KV block
  void* out;                                       // of type T, or float if out_is_float
  int64_t out_row, out_head;
  float* lse;  // may be null
  int64_t lse_row;
  // The partial results of sequences with several splits: [work tiles, kv_heads, rows of a tile, d]
  // and [work tiles, kv_heads, rows of a tile].
  float* partial_outs;
  float* partial_lses;
  float scale;
  bool out_is_float;
  int group, parallel_blocks;
  const PagedSequence* sequences;  // of the whole call, in device memory
  int launched;                    // sequences of this launch
  LaunchedRows rows[kMaxSequences];
};

// One row tile and one split of a sequence. The keys of the split are the slots [key_begin,
// key_end).
struct WorkTile {
  const int32_t* block_table;
  const int32_t* slot_positions;  // of the slots from causal_begin on
  int causal_begin;
  int key_begin, key_end;
  int row_begin, row_count;  // tokens of the sequence
  int row_tile;
  int split, num_splits;
};

// The splits of a launched sequence. gridDim.y is the number of KV heads.
__device__ __forceinline__ SequenceSplits SplitsOf(const Params& params, const LaunchedRows& rows) {
  return SplitSequence(rows.count, static_cast<int>(params.sequences[rows.sequence].slot_count),
                       params.group, static_cast<int>(gridDim.y), params.parallel_blocks);
}

// Work tile number `index` of a launched sequence.
__device__ __forceinline__ WorkTile WorkTileOf(const Params& params, const LaunchedRows& rows,
                                               int index) {
  const PagedSequence& s = params.sequences[rows.sequence];
  const SequenceSplits splits = SplitsOf(params, rows);
  const int slot_count = static_cast<int>(s.slot_count);
  WorkTile work;
  work.block_table = s.block_table;
  work.slot_positions = s.slot_positions;
  work.causal_begin = static_cast<int>(min(s.causal_begin, s.slot_count));
  work.row_begin = rows.begin;
  work.row_count = rows.count;
  work.row_tile = index / splits.num_splits;
  work.split = index % splits.num_splits;
  work.num_splits = splits.num_splits;
  work.key_begin = work.split * splits.keys_per_split;
  work.key_end = min(work.key_begin + splits.keys_per_split, slot_count);
  return work;
}

// Finds work tile number `index` of the launch; the splits of a row tile have consecutive numbers.
// Only the device knows how many slots, and so how many work tiles, a sequence has: each warp
// counts them, a lane for a sequence. False if the launch has fewer work tiles, because its grid is
// an upper bound.
__device__ __forceinline__ bool FindWorkTile(const Params& params, int index, WorkTile& work) {
  const int lane = threadIdx.x % kWarp;
  for (int first = 0; first < params.launched; first += kWarp) {
    int end = 0;  // the number of work tiles of the sequences from `first` to this lane's
    if (first + lane < params.launched) {
      const SequenceSplits splits = SplitsOf(params, params.rows[first + lane]);
      end = splits.row_tiles * splits.num_splits;
    }
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += other;
    }
    const int owner = __popc(__ballot_sync(~0u, end <= index));
    const int before = __shfl_sync(~0u, end, owner == 0 ? 0 : owner - 1);
    if (owner < kWarp) {
      work = WorkTileOf(params, params.rows[first + owner], owner == 0 ? index : index - before);
      return true;
    }
    index -= before;  // owner - 1 is the last lane
  }
  return false;
}

// The token of packed row `packed` of the sequence, as a row of q and out; -1 if there is none.
__device__ __forceinline__ int64_t RowOf(const Params& params, const WorkTile& work, int packed) {
  return packed < work.row_count * params.group ? work.row_begin + packed / params.group : -1;
}

// The place of a packed row's result: in out and lse, or among the partial results.
struct RowTarget {
  void* out;
  bool is_float;
  int64_t at;  // element of `out`
  float* lse;  // may be null
};

// in_tile: the packed row's number in its tile of kRows.
template <int kRows, int D>
__device__ __forceinline__ RowTarget TargetOf(const Params& params, const WorkTile& work,
                                              int64_t row, int in_tile, int packed) {
  const int kv_head = blockIdx.y, head = kv_head * params.group + packed % params.group;
  if (work.num_splits == 1) {
    return {params.out, params.out_is_float, row * params.out_row + head * params.out_head,
            params.lse == nullptr ? nullptr : params.lse + row * params.lse_row + head};
  }
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * gridDim.y + kv_head) * kRows + in_tile;
  return {params.partial_outs, true, at * D, params.partial_lses + at};
}

}  // namespace apb::kernels::cuda::paged
