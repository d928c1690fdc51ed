// Scores of keys, and the choice of the best keys: pooling, top-k, gathering.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operations.h"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTopKThreads = 1024;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

__global__ void MaxPoolKernel(const float* scores, int64_t score_stride, float* out,
                              int64_t out_stride, int64_t rows, int heads, int reach) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * heads) return;
  const int64_t t = index / heads, h = index % heads;
  const int64_t first = t > reach ? t - reach : 0;
  const int64_t last = t + reach < rows ? t + reach : rows - 1;
  float top = -INFINITY;
  for (int64_t r = first; r <= last; ++r) {
    const float x = scores[r * score_stride + h];
    top = x > top ? x : top;  // ignores NaN
  }
  out[t * out_stride + h] = top;
}

// means[j, c] = factor times the sum over the queries and the heads of group j. One thread adds a
// dimension, in a fixed order, so that every rank gets the same.
template <typename T>
__global__ void QueryMeanKernel(const T* query, int64_t row_stride, int64_t head_stride,
                                int queries, int group, int width, float factor, float* means) {
  for (int c = threadIdx.x; c < width; c += kThreads) {
    float sum = 0;
    for (int m = 0; m < queries; ++m) {
      for (int g = 0; g < group; ++g) {
        sum += ToFloat(query[m * row_stride + (blockIdx.x * group + g) * head_stride + c]);
      }
    }
    means[blockIdx.x * width + c] = sum * factor;
  }
}

// One warp for a key of a head: the mean of dot products is the dot product with the mean.
template <typename T>
__global__ void KeyScoreKernel(const T* k, int64_t row_stride, int64_t head_stride,
                               const float* means, float* scores, int64_t score_stride,
                               int64_t rows, int heads, int width) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= rows * heads) return;
  const int64_t t = index / heads, h = index % heads;
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int c = lane; c < width; c += kWarp)
    sum += ToFloat(k[t * row_stride + h * head_stride + c]) * means[h * width + c];
  sum = WarpSum(sum);
  if (lane == 0) scores[t * score_stride + h] = sum;
}

// Maps floats to unsigned numbers of the same order. -0 equals 0, and NaN equals -inf.
__device__ uint32_t Ordered(float x) {
  if (x != x) x = -INFINITY;
  if (x == 0.0f) x = 0.0f;
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Returns the sum over the threads before this one; *total is that of all. All threads of the block
// call it. of_warp is shared memory.
__device__ int PrefixSum(int value, int* total, int* of_warp) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int inclusive = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  __syncthreads();  // all threads have read of_warp in the call before
  if (lane == kWarp - 1) of_warp[warp] = inclusive;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kTopKThreads / kWarp; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  *total = all;
  return before + inclusive - value;
}

// One block for a head. Radix selection: four passes find the count-th largest score, digit by
// digit. A last pass writes, in ascending order, the rows with higher scores and the first ones of
// those with the same score.
__global__ void __launch_bounds__(kTopKThreads)
    TopKKernel(const float* scores, int64_t stride, int begin, int end, int count, int32_t* indices,
               int64_t index_stride) {
  __shared__ int histogram[kDigits];
  __shared__ int of_warp[kTopKThreads / kWarp];
  __shared__ uint32_t found_prefix;
  __shared__ int found_wanted;
  const float* mine = scores + blockIdx.x;
  uint32_t prefix = 0;  // the known digits of the count-th largest score
  int wanted = count;   // its place among the scores with these digits
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigits; i += kTopKThreads) histogram[i] = 0;
    __syncthreads();
    for (int t = begin + threadIdx.x; t < end; t += kTopKThreads) {
      const uint32_t key = Ordered(mine[t * stride]);
      // Two shifts, because a shift by all 32 bits is undefined.
      if ((key >> shift >> kDigitBits) == prefix)
        atomicAdd(&histogram[key >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && histogram[digit] < wanted) wanted -= histogram[digit--];
      found_prefix = prefix << kDigitBits | static_cast<uint32_t>(digit);
      found_wanted = wanted;
    }
    __syncthreads();
    prefix = found_prefix;
    wanted = found_wanted;
  }
  int32_t* out = indices + blockIdx.x * index_stride;
  int written = 0, equals = 0;
  for (int base = begin; base < end; base += kTopKThreads) {
    const int t = base + static_cast<int>(threadIdx.x);
    const uint32_t key = t < end ? Ordered(mine[t * stride]) : 0;
    const bool equal = t < end && key == prefix;
    int equals_here = 0, written_here = 0;
    const int equals_before = equals + PrefixSum(equal, &equals_here, of_warp);
    const bool take = t < end && (key > prefix || (equal && equals_before < wanted));
    const int place = written + PrefixSum(take, &written_here, of_warp);
    if (take) out[place] = t;
    equals += equals_here;
    written += written_here;
  }
}

// Words are 16, 4 or 2 bytes of a row.
template <typename Word>
__global__ void GatherKernel(const Word* x, int64_t x_row, int64_t x_head, const int32_t* indices,
                             int64_t index_stride, Word* out, int64_t out_row, int64_t out_head,
                             int heads, int words) {
  for (int i = threadIdx.x; i < heads * words; i += kThreads) {
    const int head = i / words, c = i % words;
    const int64_t row = indices[head * index_stride + blockIdx.x];
    out[blockIdx.x * out_row + head * out_head + c] = x[row * x_row + head * x_head + c];
  }
}

template <typename Word>
cudaError_t Gather(const TensorView& x, const TensorView& indices, const TensorView& out,
                   cudaStream_t stream) {
  const int64_t size = static_cast<int64_t>(SizeOf(x.dtype));
  const auto words = [&](int64_t elements) {
    return elements * size / static_cast<int64_t>(sizeof(Word));
  };
  return Launch(GatherKernel<Word>, dim3(static_cast<unsigned>(indices.shape[1])), kThreads, 0,
                stream, x.as<const Word>(), words(x.stride[0]), words(x.stride[1]),
                indices.as<const int32_t>(), indices.stride[0], out.as<Word>(),
                words(out.stride[0]), words(out.stride[1]), static_cast<int>(x.shape[1]),
                static_cast<int>(words(x.shape[2])));
}

}  // namespace

cudaError_t Enqueue(const MaxPoolRowsArgs& args, cudaStream_t stream) {
  const TensorView &scores = args.scores, &out = args.out;
  const int64_t rows = scores.shape[0], heads = scores.shape[1];
  return Launch(MaxPoolKernel, dim3(static_cast<unsigned>(DivideUp(rows * heads, kThreads))),
                kThreads, 0, stream, scores.as<const float>(), scores.stride[0], out.as<float>(),
                out.stride[0], rows, static_cast<int>(heads), args.window / 2);
}

cudaError_t KeyScores(const KeyScoreArgs& args, float* means, cudaStream_t stream) {
  const int64_t rows = args.k.shape[0];
  const int heads = static_cast<int>(args.k.shape[1]), width = static_cast<int>(args.k.shape[2]);
  const int queries = static_cast<int>(args.query.shape[0]);
  const int group = static_cast<int>(args.query.shape[1]) / heads;
  const float factor = queries > 0 ? args.scale / static_cast<float>(queries * group) : 0.0f;
  return WithElement(args.k.dtype, [&](auto element) {
    using T = decltype(element);
    const cudaError_t error =
        Launch(QueryMeanKernel<T>, dim3(static_cast<unsigned>(heads)), kThreads, 0, stream,
               args.query.as<const T>(), args.query.stride[0], args.query.stride[1], queries, group,
               width, factor, means);
    if (error != cudaSuccess) return error;
    return Launch(KeyScoreKernel<T>,
                  dim3(static_cast<unsigned>(DivideUp(rows * heads, kThreads / kWarp))), kThreads,
                  0, stream, args.k.as<const T>(), args.k.stride[0], args.k.stride[1], means,
                  args.scores.as<float>(), args.scores.stride[0], rows, heads, width);
  });
}

cudaError_t Enqueue(const TopKPerHeadArgs& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  return Launch(TopKKernel, dim3(static_cast<unsigned>(args.scores.shape[1])), kTopKThreads, 0,
                stream, args.scores.as<const float>(), args.scores.stride[0],
                static_cast<int>(args.eligible_begin), static_cast<int>(args.eligible_end),
                static_cast<int>(args.count), args.indices.as<int32_t>(), args.indices.stride[0]);
}

cudaError_t Enqueue(const GatherRowsPerHeadArgs& args, cudaStream_t stream) {
  const TensorView &x = args.x, &indices = args.indices, &out = args.out;
  if (IsAligned16(x) && IsAligned16(out)) return Gather<uint4>(x, indices, out, stream);
  return SizeOf(x.dtype) == 2 ? Gather<uint16_t>(x, indices, out, stream)
                              : Gather<uint32_t>(x, indices, out, stream);
}

}  // namespace apb::kernels::cuda
