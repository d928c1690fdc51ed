// Attention for any type, any alignment and head dimensions up to 256. A warp takes one row and
// query head and goes over the keys one by one; a lane keeps every 32nd dimension. Slow: for models
// in f32, and to check the matrix kernels.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/softmax_state.cuh"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPerLane = 256 / kWarp;  // dimensions: lane, lane + 32, ...

// One query row, its state and its output. The query is scaled first, so that scores are in units
// of log2.
template <typename T>
struct PlainRow {
  static constexpr float kScaleLog2 = 1;

  int lane, head_dim;
  float q[kPerLane] = {}, out[kPerLane] = {};
  SoftmaxState softmax;

  __device__ PlainRow(const T* row, int d, float scale) : lane(threadIdx.x % kWarp), head_dim(d) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + i * kWarp;
      if (c < head_dim) q[i] = ToFloat(row[c]) * scale * kLog2E;
    }
  }
  __device__ void Add(const T* k, const T* v) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + i * kWarp;
      if (c < head_dim) score += q[i] * ToFloat(k[c]);
    }
    score = WarpSum(score);
    const float rescale = softmax.RaiseMax(fmaxf(softmax.row_max, score), kScaleLog2);
    const float weight = softmax.Weight(score, kScaleLog2);
    softmax.row_sum += weight;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + i * kWarp;
      if (c < head_dim) out[i] = out[i] * rescale + weight * ToFloat(v[c]);
    }
  }
  // `lse` may be null.
  __device__ void Write(void* to, bool is_float, float* lse) const {
    const float normalizer = softmax.Normalizer();
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int c = lane + i * kWarp;
      if (c >= head_dim) continue;
      const float x = out[i] * normalizer;
      if (is_float) {
        static_cast<float*>(to)[c] = x;
      } else {
        static_cast<T*>(to)[c] = FromFloat<T>(x);
      }
    }
    if (lane == 0 && lse != nullptr) *lse = softmax.LogSumExp(kLn2);
  }
};

__device__ void* OutAt(void* out, bool is_float, int64_t at) {
  return static_cast<unsigned char*>(out) + at * (is_float ? 4 : 2);
}

template <typename T>
__global__ void PlainKernel(const __grid_constant__ SegmentedArgs a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (index >= a.rows * a.heads) return;
  const int64_t t = index / a.heads;
  const int head = static_cast<int>(index % a.heads), kv_head = head / (a.heads / a.kv_heads);
  PlainRow<T> row(static_cast<const T*>(a.q) + t * a.q_row + head * a.q_head, a.head_dim, a.scale);
  for (int i = 0; i < a.segments; ++i) {
    const DeviceSegment& s = a.segment[i];
    const Visibility visibility = s.visible_to_group[t < a.group_split ? 0 : 1];
    if (visibility == Visibility::kNone) continue;
    for (int64_t key = 0; key < s.keys; ++key) {
      if (visibility == Visibility::kCausal && s.positions[key] > a.q_positions[t]) continue;
      row.Add(static_cast<const T*>(s.k) + key * s.k_row + kv_head * s.k_head,
              static_cast<const T*>(s.v) + key * s.v_row + kv_head * s.v_head);
    }
  }
  row.Write(OutAt(a.out, a.out_is_float, t * a.out_row + head * a.out_head), a.out_is_float,
            a.lse == nullptr ? nullptr : a.lse + t * a.lse_row + head);
}

struct PlainPagedArgs {
  TensorView q, q_positions, k_cache, v_cache, out, lse;
  PagedRows rows;
  const PagedSequence* sequence;
  float scale;
};

template <typename T>
__global__ void PlainPagedKernel(const __grid_constant__ PlainPagedArgs a) {
  const int64_t heads = a.q.shape[1], kv_heads = a.k_cache.shape[1], block = a.k_cache.shape[2];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (index >= a.rows.count * heads) return;
  const PagedSequence& sequence = *a.sequence;
  const int64_t t = a.rows.begin + index / heads, head = index % heads;
  const int64_t kv_head = head / (heads / kv_heads);
  const int32_t position = static_cast<const int32_t*>(a.q_positions.data)[t];
  PlainRow<T> row(static_cast<const T*>(a.q.data) + t * a.q.stride[0] + head * a.q.stride[1],
                  static_cast<int>(a.q.shape[2]), a.scale);
  for (int64_t slot = 0; slot < sequence.slot_count; ++slot) {
    if (slot >= sequence.causal_begin &&
        sequence.slot_positions[slot - sequence.causal_begin] > position) {
      continue;
    }
    const int64_t at = sequence.block_table[slot / block] * a.k_cache.stride[0] +
                       kv_head * a.k_cache.stride[1] + slot % block * a.k_cache.stride[2];
    row.Add(static_cast<const T*>(a.k_cache.data) + at, static_cast<const T*>(a.v_cache.data) + at);
  }
  const bool is_float = a.out.dtype == DType::kF32;
  row.Write(OutAt(a.out.data, is_float, t * a.out.stride[0] + head * a.out.stride[1]), is_float,
            a.lse.data == nullptr ? nullptr
                                  : static_cast<float*>(a.lse.data) + t * a.lse.stride[0] + head);
}

}  // namespace

cudaError_t PlainAttention(const SegmentedArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(DivideUp(args.rows * args.heads, kWarps)));
  return WithElement(args.dtype, [&](auto element) {
    return Launch(PlainKernel<decltype(element)>, grid, kThreads, 0, stream, args);
  });
}

cudaError_t PlainPagedAttention(const PagedAttentionArgs& args, cudaStream_t stream) {
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const PlainPagedArgs one{.q = args.q,
                             .q_positions = args.q_positions,
                             .k_cache = args.k_cache,
                             .v_cache = args.v_cache,
                             .out = args.out,
                             .lse = args.lse,
                             .rows = args.rows[i],
                             .sequence = args.sequences + i,
                             .scale = args.scale};
    const dim3 grid(static_cast<unsigned>(DivideUp(one.rows.count * args.q.shape[1], kWarps)));
    const cudaError_t error = WithElement(args.q.dtype, [&](auto element) {
      return Launch(PlainPagedKernel<decltype(element)>, grid, kThreads, 0, stream, one);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace apb::kernels::cuda
