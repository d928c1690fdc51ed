// The device arguments and the tile plan of prefill attention.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ PositionRange RangeOf(const int32_t* positions, int count, int lane) {
  PositionRange range{INT32_MAX, INT32_MIN};
  for (int i = lane; i < count; i += kWarp) {
    range.low = min(range.low, positions[i]);
    range.high = max(range.high, positions[i]);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    range.low = min(range.low, __shfl_xor_sync(~0u, range.low, offset));
    range.high = max(range.high, __shfl_xor_sync(~0u, range.high, offset));
  }
  return range;
}

// The position range of each key tile, one warp for a tile. blockIdx.y is the segment; only
// segments with a causal group need ranges.
__global__ void KeyRangesKernel(const __grid_constant__ SegmentedArgs args, int tile_keys,
                                PositionRange* ranges) {
  const DeviceSegment& segment = args.segment[blockIdx.y];
  const int tile = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (segment.visible_to_group[0] != Visibility::kCausal &&
      segment.visible_to_group[1] != Visibility::kCausal) {
    return;
  }
  if (tile >= TilesOf(segment.keys, tile_keys)) return;
  const PositionRange range =
      RangeOf(segment.positions + tile * tile_keys, min(tile_keys, segment.keys - tile * tile_keys),
              threadIdx.x % kWarp);
  if (threadIdx.x % kWarp == 0) ranges[segment.first_tile + tile] = range;
}

// The TileCount of each row tile and segment, one warp for each.
__global__ void TileCountsKernel(const __grid_constant__ SegmentedArgs args, int tile_rows,
                                 int tile_keys, const PositionRange* ranges, TileCount* counts) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (index >= RowTiles(args.rows, args.group_split, tile_rows) * args.segments) return;
  const int lane = threadIdx.x % kWarp;
  const RowTile tile = RowTileAt(index / args.segments, args.rows, args.group_split, tile_rows);
  const DeviceSegment& segment = args.segment[index % args.segments];
  const PositionRange rows = RangeOf(args.q_positions + tile.begin, tile.rows, lane);
  TileCount count = CountTiles(segment.visible_to_group[tile.group], segment.keys, tile_keys,
                               ranges + segment.first_tile, rows, lane, kWarp);
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    count.whole = min(count.whole, __shfl_xor_sync(~0u, count.whole, offset));
    count.seen = max(count.seen, __shfl_xor_sync(~0u, count.seen, offset));
  }
  if (lane == 0) counts[index] = count;
}

int64_t KeyTiles(const SegmentedArgs& args, int tile_keys) {
  int64_t tiles = 0;
  for (int i = 0; i < args.segments; ++i) tiles += TilesOf(args.segment[i].keys, tile_keys);
  return tiles;
}

}  // namespace

SegmentedArgs ToDevice(const AttentionArgs& a) {
  SegmentedArgs d{};
  d.q = a.q.data;
  d.q_row = a.q.stride[0];
  d.q_head = a.q.stride[1];
  d.q_positions = a.q_positions.as<const int32_t>();
  d.out = a.out.data;
  d.out_row = a.out.stride[0];
  d.out_head = a.out.stride[1];
  d.lse = a.lse.as<float>();
  d.lse_row = a.lse.stride[0];
  d.rows = a.q.shape[0];
  d.group_split = a.group_split;
  d.heads = static_cast<int>(a.q.shape[1]);
  d.kv_heads = d.heads;
  d.head_dim = static_cast<int>(a.q.shape[2]);
  d.scale = a.scale;
  d.dtype = a.q.dtype;
  d.out_is_float = a.out.dtype == DType::kF32;
  for (const KeySegment& s : a.keys) {
    const bool read_by_0 = a.group_split > 0 && s.visible_to_group[0] != Visibility::kNone;
    const bool read_by_1 = a.group_split < d.rows && s.visible_to_group[1] != Visibility::kNone;
    if (s.k.shape[0] == 0 || (!read_by_0 && !read_by_1)) continue;
    d.kv_heads = static_cast<int>(s.k.shape[1]);
    d.segment[d.segments++] = {.k = s.k.data,
                               .v = s.v.data,
                               .positions = s.positions.as<const int32_t>(),
                               .k_row = s.k.stride[0],
                               .k_head = s.k.stride[1],
                               .v_row = s.v.stride[0],
                               .v_head = s.v.stride[1],
                               .keys = static_cast<int32_t>(s.k.shape[0]),
                               .first_tile = 0,
                               .visible_to_group = {s.visible_to_group[0], s.visible_to_group[1]}};
  }
  return d;
}

size_t PlanBytes(const SegmentedArgs& args, int tile_rows, int tile_keys) {
  return KeyTiles(args, tile_keys) * sizeof(PositionRange) +
         RowTiles(args.rows, args.group_split, tile_rows) * args.segments * sizeof(TileCount);
}

cudaError_t PlanTiles(SegmentedArgs& args, int tile_rows, int tile_keys, void* scratch,
                      cudaStream_t stream) {
  int64_t tiles = 0, longest = 0;
  for (int i = 0; i < args.segments; ++i) {
    args.segment[i].first_tile = static_cast<int32_t>(tiles);
    const int64_t of_segment = TilesOf(args.segment[i].keys, tile_keys);
    tiles += of_segment;
    longest = of_segment > longest ? of_segment : longest;
  }
  auto* ranges = static_cast<PositionRange*>(scratch);
  auto* counts = reinterpret_cast<TileCount*>(ranges + tiles);
  args.tile_counts = counts;
  const int64_t wanted = RowTiles(args.rows, args.group_split, tile_rows) * args.segments;
  const cudaError_t error = Launch(
      KeyRangesKernel,
      dim3(static_cast<unsigned>(DivideUp(longest, kWarps)), static_cast<unsigned>(args.segments)),
      kThreads, 0, stream, args, tile_keys, ranges);
  if (error != cudaSuccess) return error;
  return Launch(TileCountsKernel, dim3(static_cast<unsigned>(DivideUp(wanted, kWarps))), kThreads,
                0, stream, args, tile_rows, tile_keys, ranges, counts);
}

}  // namespace apb::kernels::cuda
