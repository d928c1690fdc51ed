// The attention kernels: their arguments and their CPU side. Three prefill kernels compute the
// same, from the fastest to the most general:
//
// - Hopper (sm_90a): bf16 and f16, d 64 or 128; TMA, wgmma, a producer and two consumer warpgroups.
//
// - Matrix (sm_80): bf16 and f16, d 64, 80, 96 or 128; mma.sync, cp.async.
//
// - Plain: any type and alignment, d up to 256; a warp for a row and head.
#pragma once

#include <cuda_runtime.h>

#include "kernels/attention_args.h"
#include "kernels/cuda/attention_plan.h"

namespace apb::kernels::cuda {

constexpr int kMaxSegments = 64;  // of one launch; more segments take several, which are combined

struct DeviceSegment {
  const void* k;
  const void* v;
  const int32_t* positions;
  int64_t k_row, k_head, v_row, v_head;  // strides
  int32_t keys;
  int32_t first_tile;  // number of its first key tile among those of all segments
  Visibility visible_to_group[2];
};

// The arguments of a prefill kernel. Strides are in elements.
struct SegmentedArgs {
  DType dtype;  // of q, k and v, and of out unless out_is_float
  const void* q;
  int64_t q_row, q_head;
  const int32_t* q_positions;
  void* out;
  int64_t out_row, out_head;
  float* lse;  // may be null
  int64_t lse_row;
  int64_t rows, group_split;
  const TileCount* tile_counts;  // [row tiles, segments]
  int heads, kv_heads, head_dim;
  float scale;
  bool out_is_float;
  int segments;
  DeviceSegment segment[kMaxSegments];
};

// The work of one thread block of the prefill kernels: a tile of rows and a query head.
struct PrefillTile {
  int64_t index;  // of the row tile in tile_counts
  RowTile rows;
  int head, kv_head;
};

// The heads of a group run side by side, because they read the same keys. The last rows come first,
// because they see the most keys.
APB_HOST_DEVICE inline PrefillTile PrefillTileAt(const SegmentedArgs& a, unsigned block,
                                                 int tile_rows) {
  const int group = a.heads / a.kv_heads;
  const int64_t tiles = RowTiles(a.rows, a.group_split, tile_rows);
  const int64_t index = tiles - 1 - block / group % tiles;
  const int kv_head = static_cast<int>(block / group / tiles);
  return {index, RowTileAt(index, a.rows, a.group_split, tile_rows),
          static_cast<int>(kv_head * group + block % group), kv_head};
}

// Makes the arguments without tile_counts, of at most kMaxSegments segments. Drops segments without
// keys and those that no row sees.
SegmentedArgs ToDevice(const AttentionArgs& args);

// PlanTiles enqueues the plan's computation, and sets args.tile_counts and the segments'
// first_tile. `scratch` has PlanBytes() bytes of device memory, which the attention kernel reads
// too.
size_t PlanBytes(const SegmentedArgs& args, int tile_rows, int tile_keys);
cudaError_t PlanTiles(SegmentedArgs& args, int tile_rows, int tile_keys, void* scratch,
                      cudaStream_t stream);

// attention_plain.cu. Needs no plan.
cudaError_t PlainAttention(const SegmentedArgs& args, cudaStream_t stream);
cudaError_t PlainPagedAttention(const PagedAttentionArgs& args, cudaStream_t stream);

// attention_sm80.cu. MatrixAttentionTakes() tells whether the matrix kernels take these views.
constexpr int kMatrixTileRows = 64;
constexpr int kMatrixTileKeys = 64;
bool IsMatrixType(DType dtype);
bool IsMatrixHeadDim(int64_t head_dim);
bool MatrixAttentionTakes(const AttentionArgs& args);
cudaError_t MatrixAttention(const SegmentedArgs& args, cudaStream_t stream);

// attention_sm90.cu. Takes the views that the matrix kernel takes, for these head dimensions.
constexpr int kHopperTileRows = 128;
constexpr int kHopperTileKeys = 128;
bool IsHopperHeadDim(int64_t head_dim);
cudaError_t HopperAttention(const SegmentedArgs& args, cudaStream_t stream);

// paged/paged_attention.cu
bool MatrixPagedAttentionTakes(const PagedAttentionArgs& args);
// Bytes of scratch for the partial results of splits.
size_t PagedScratchBytes(const PagedAttentionArgs& args, int multiprocessors);
cudaError_t MatrixPagedAttention(const PagedAttentionArgs& args, int multiprocessors, void* scratch,
                                 cudaStream_t stream);

}  // namespace apb::kernels::cuda
