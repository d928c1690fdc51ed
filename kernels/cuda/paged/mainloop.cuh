// The main loop of paged attention. The producer copies key tiles from the paged cache to shared
// memory (cp.async), the consumer attends to them (mma.sync); every thread is part of both. With
// few packed rows the warps share the rows and take different keys, each with its own ring of
// stages and no block barrier. With many packed rows the warps share the keys and take different
// rows.
#pragma once

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/paged/params.cuh"

namespace apb::kernels::cuda::paged {

// A block's sizes and shared memory. kFew: a tile has few packed rows, see work_tiles.h.
template <typename T, int D, bool kFew>
struct Layout {
  static constexpr int kRows = kFew ? kFewRows : kManyRows;  // packed rows of a tile
  static constexpr int kKeys = kFew ? 16 : kTileKeys;        // of one stage
  static constexpr int kStages = kFew && D < 128 ? 3 : 2;
  static constexpr int kCopiers = kFew ? kWarp : kThreads;  // threads that share a ring
  static constexpr int kRings = kThreads / kCopiers;
  static constexpr int kStep = kRings * kKeys;  // keys from a ring's tile to its next

  struct Tile {
    T k[kKeys][WarpAttention<T, D>::kStride];
    T v[kKeys][WarpAttention<T, D>::kStride];
  };
  // The results of warps that had different keys.
  struct WarpResults {
    float out[kWarps][kFewRows][D];
    float row_max[kWarps][kFewRows], row_sum[kWarps][kFewRows];
  };
  union Shared {
    Tile tile[kRings][kStages];
    WarpResults results;
  };
  static_assert(sizeof(Shared) <= kSharedBytesEverywhere);

  // The ring of the calling thread, and a barrier for the threads that share it.
  static __device__ __forceinline__ int Ring() { return kFew ? threadIdx.x / kWarp : 0; }
  static __device__ __forceinline__ void SyncRing() {
    if (kFew) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

// The offsets of a tile's keys in the cache, in elements. Lane i % 32 of every warp keeps that of
// key i.
template <int kKeys>
struct KeyOffsets {
  static constexpr int kEach = (kKeys + kWarp - 1) / kWarp;
  int64_t mine[kEach];

  // Looks up the keys from slot `first` on.
  __device__ __forceinline__ void Find(const Params& params, const WorkTile& work, int first) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int slot = first + e * kWarp + static_cast<int>(threadIdx.x % kWarp);
      mine[e] = 0;
      if (slot < work.key_end) {
        mine[e] = work.block_table[slot / params.block_size] * params.block_stride +
                  slot % params.block_size * params.slot_stride;
      }
    }
  }
  // The offset of `key`. All lanes of a warp must call it, each with its own key.
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

// Copies the key tiles of the thread's ring: tiles number ring, ring + kRings, ... of the split.
template <typename T, int D, bool kFew>
struct Producer {
  using Sizes = Layout<T, D, kFew>;

  const Params& params;
  const WorkTile& work;
  const T* k_head;  // the KV head's part of the caches
  const T* v_head;
  int next;  // the first key of the next tile
  KeyOffsets<Sizes::kKeys> offsets;

  __device__ __forceinline__ Producer(const Params& call, const WorkTile& tile)
      : params(call),
        work(tile),
        k_head(static_cast<const T*>(call.k_cache) + blockIdx.y * call.head_stride),
        v_head(static_cast<const T*>(call.v_cache) + blockIdx.y * call.head_stride),
        next(tile.key_begin + Sizes::Ring() * Sizes::kKeys) {
    offsets.Find(params, work, next);
  }
  // Starts the copy of the next tile, if there is one. Always commits a cp.async group, so that the
  // number of groups does not depend on the number of tiles.
  __device__ __forceinline__ void Copy(typename Sizes::Tile& tile) {
    if (next < work.key_end) {
      constexpr int kChunks = D / 8;
#pragma unroll
      for (int i = 0; i < Sizes::kKeys * kChunks / Sizes::kCopiers; ++i) {
        const int chunk = i * Sizes::kCopiers + threadIdx.x % Sizes::kCopiers;
        const int key = chunk / kChunks, c = chunk % kChunks * 8;
        const int64_t from = offsets.Of(key) + c;
        const bool valid = next + key < work.key_end;
        CpAsync16(&tile.k[key][c], k_head + (valid ? from : 0), valid);
        CpAsync16(&tile.v[key][c], v_head + (valid ? from : 0), valid);
      }
      next += Sizes::kStep;
      offsets.Find(params, work, next);  // read now, for the next call
    }
    CpAsyncCommitGroup();
  }
};

// A warp's 16 packed rows, of which a lane has two, with their outputs and softmax states.
template <typename T, int D, bool kFew>
struct Consumer {
  using Sizes = Layout<T, D, kFew>;

  WarpAttention<T, D> warp;
  int in_tile[2], packed[2];  // numbers of the rows in the tile and in the sequence
  int64_t row[2];             // rows of q and out; -1 for rows past the sequence's last one
  int32_t position[2] = {0, 0};

  __device__ __forceinline__ Consumer(const Params& params, const WorkTile& work) {
    const int lane = threadIdx.x % kWarp, warp_index = threadIdx.x / kWarp;
    const T* q[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      in_tile[half] = (kFew ? 0 : warp_index * 16) + lane / 4 + half * 8;
      packed[half] = work.row_tile * Sizes::kRows + in_tile[half];
      row[half] = RowOf(params, work, packed[half]);
      q[half] = nullptr;
      if (row[half] < 0) continue;
      position[half] = params.q_positions[row[half]];
      q[half] = static_cast<const T*>(params.q) + row[half] * params.q_row +
                (blockIdx.y * params.group + packed[half] % params.group) * params.q_head;
    }
    warp.LoadRows(q[0], q[1]);
  }
  // Attends to the keys of a tile, which begin with slot `first`.
  __device__ __forceinline__ void Attend(const typename Sizes::Tile& tile, const WorkTile& work,
                                         int first, float scale_log2) {
    const bool masked = first + Sizes::kKeys > min(work.key_end, work.causal_begin);
    warp.template Attend<Sizes::kKeys>(
        &tile.k[0][0], &tile.v[0][0], scale_log2, masked, [&](int half, int key) {
          const int slot = first + key;
          return slot < work.key_end &&
                 (slot < work.causal_begin ||
                  work.slot_positions[slot - work.causal_begin] <= position[half]);
        });
  }
  // Writes the normalized rows and their log-sum-exps. After softmax.ReduceLanes().
  __device__ __forceinline__ void Store(const Params& params, const WorkTile& work) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row[half] < 0) continue;
      const RowTarget to =
          TargetOf<Sizes::kRows, D>(params, work, row[half], in_tile[half], packed[half]);
      warp.WriteRow(half, to.out, to.is_float, to.at);
      if (to.lse != nullptr && threadIdx.x % 4 == 0)
        *to.lse = warp.softmax.row[half].LogSumExp(params.scale);
    }
  }
};

// Lets the consumer attend to all key tiles of its ring. Copies run kStages - 1 tiles ahead.
template <typename T, int D, bool kFew>
__device__ __forceinline__ void Mainloop(const Params& params, const WorkTile& work,
                                         typename Layout<T, D, kFew>::Shared& shared,
                                         Consumer<T, D, kFew>& consumer) {
  using Sizes = Layout<T, D, kFew>;
  auto& tiles = shared.tile[Sizes::Ring()];
  const float scale_log2 = params.scale * kLog2E;
  Producer<T, D, kFew> producer(params, work);
  int first = producer.next;
#pragma unroll
  for (int stage = 0; stage + 1 < Sizes::kStages; ++stage) producer.Copy(tiles[stage]);
  int stage = 0;
  for (; first < work.key_end; first += Sizes::kStep) {
    // The stage of the turn before is free: SyncRing() at its end waited for all readers.
    producer.Copy(tiles[(stage + Sizes::kStages - 1) % Sizes::kStages]);
    CpAsyncWaitGroup<Sizes::kStages - 1>();
    Sizes::SyncRing();  // the parts of all copiers have arrived
    consumer.Attend(tiles[stage], work, first, scale_log2);
    Sizes::SyncRing();
    stage = (stage + 1) % Sizes::kStages;
  }
}

}  // namespace apb::kernels::cuda::paged
