// Operations that touch each number once. Bound by memory, so they share one pattern: a block or a
// warp takes a row, and its threads take neighbouring packs of 16 bytes. For rows that are not
// aligned the same code runs with packs of one element.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/softmax_state.cuh"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxRotaryPairs = 128;

template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T element[kPack];
};

template <typename T, int kPack>
__device__ Pack<T, kPack> LoadPack(const T* from) {
  return *reinterpret_cast<const Pack<T, kPack>*>(from);
}
template <typename T, int kPack>
__device__ void StorePack(const Pack<T, kPack>& pack, T* to) {
  *reinterpret_cast<Pack<T, kPack>*>(to) = pack;
}

// A view as a kernel argument. Elements of the last dimension are contiguous.
template <typename T>
struct Rows {
  T* data;
  int64_t stride0, stride1;
  __device__ T* At(int64_t i, int64_t j = 0) const { return data + i * stride0 + j * stride1; }
};
template <typename T>
Rows<T> RowsOf(const TensorView& view) {
  return {view.as<T>(), view.stride[0], view.rank > 2 ? view.stride[1] : 0};
}

template <typename T, int kPack>
__global__ void EmbeddingKernel(Rows<const T> table, int64_t vocabulary, const int32_t* ids,
                                Rows<T> out, int width, int32_t* error) {
  const int32_t id = ids[blockIdx.x];
  const bool valid = id >= 0 && id < vocabulary;
  if (!valid && threadIdx.x == 0) *error = 1;
  for (int c = threadIdx.x * kPack; c < width; c += kThreads * kPack) {
    const Pack<T, kPack> pack = valid ? LoadPack<T, kPack>(table.At(id) + c) : Pack<T, kPack>{};
    StorePack<T, kPack>(pack, out.At(blockIdx.x) + c);
  }
}

// The sum over the threads of a row, which are a warp or the block.
template <int kRowThreads>
__device__ float RowSum(float sum) {
  sum = WarpSum(sum);
  if constexpr (kRowThreads > kWarp) {
    __shared__ float of_warp[kRowThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < kRowThreads / kWarp; ++w) sum += of_warp[w];
  }
  return sum;
}

// Norms the rows (t, h) of [T, heads, width] (heads = 1 for a matrix). kRowThreads threads, a warp
// or the block, take a row.
template <typename T, int kPack, int kRowThreads>
__global__ void RmsNormKernel(Rows<const T> x, const T* weight, float epsilon, Rows<T> out,
                              int64_t rows, int heads, int width) {
  const int thread = threadIdx.x % kRowThreads;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= rows) return;  // for all threads of a row alike
  const T* from = x.At(row / heads, row % heads);
  float sum = 0;
  for (int c = thread * kPack; c < width; c += kRowThreads * kPack) {
    const auto pack = LoadPack<T, kPack>(from + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum += ToFloat(pack.element[i]) * ToFloat(pack.element[i]);
  }
  sum = RowSum<kRowThreads>(sum);
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(width) + epsilon);
  T* to = out.At(row / heads, row % heads);
  for (int c = thread * kPack; c < width; c += kRowThreads * kPack) {
    auto pack = LoadPack<T, kPack>(from + c);
    const auto factor = LoadPack<T, kPack>(weight + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      pack.element[i] =
          FromFloat<T>(ToFloat(pack.element[i]) * inverse * ToFloat(factor.element[i]));
    }
    StorePack<T, kPack>(pack, to + c);
  }
}

// One block for a row. Norms the rounded sums, so that the result equals that of two operations;
// each thread reads back its own sums.
template <typename T, int kPack>
__global__ void AccumulateRmsNormKernel(Rows<const float> x, Rows<T> residual, const T* weight,
                                        float epsilon, Rows<T> out, int width) {
  T* const sums = residual.At(blockIdx.x);
  float sum = 0;
  for (int c = threadIdx.x * kPack; c < width; c += kThreads * kPack) {
    const auto added = LoadPack<float, kPack>(x.At(blockIdx.x) + c);
    auto pack = LoadPack<T, kPack>(sums + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      pack.element[i] = FromFloat<T>(ToFloat(pack.element[i]) + added.element[i]);
      sum += ToFloat(pack.element[i]) * ToFloat(pack.element[i]);
    }
    StorePack<T, kPack>(pack, sums + c);
  }
  sum = RowSum<kThreads>(sum);
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(width) + epsilon);
  for (int c = threadIdx.x * kPack; c < width; c += kThreads * kPack) {
    auto pack = LoadPack<T, kPack>(sums + c);
    const auto factor = LoadPack<T, kPack>(weight + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      pack.element[i] =
          FromFloat<T>(ToFloat(pack.element[i]) * inverse * ToFloat(factor.element[i]));
    }
    StorePack<T, kPack>(pack, out.At(blockIdx.x) + c);
  }
}

// The paged caches as a kernel argument. Both have the same strides.
template <typename T>
struct CacheView {
  T* k;
  T* v;
  int64_t block_stride, head_stride, slot_stride;
  int block_size;
  __device__ int64_t At(int64_t slot) const {
    return slot / block_size * block_stride + slot % block_size * slot_stride;
  }
};
template <typename T>
CacheView<T> CacheOf(const TensorView& k_cache, const TensorView& v_cache) {
  return {k_cache.as<T>(),   v_cache.as<T>(),   k_cache.stride[0],
          k_cache.stride[1], k_cache.stride[2], static_cast<int>(k_cache.shape[2])};
}

// The store to the cache that RopeKernel does beside the rotation. slots is null without one.
template <typename T>
struct StoreArgs {
  const int64_t* slots;
  int64_t first_row;
  Rows<const T> v;
  CacheView<T> cache;
  int kv_heads;
};

// One block for a token, whose angles are the same for all heads.
template <typename T, int kPack>
__global__ void RopeKernel(Rows<T> x, const int32_t* positions, const float* inv_freq,
                           float attention_factor, int heads, int width, int pairs,
                           StoreArgs<T> store) {
  __shared__ float cosine[kMaxRotaryPairs], sine[kMaxRotaryPairs];
  const int64_t row = blockIdx.x;
  if (static_cast<int>(threadIdx.x) < pairs) {
    const float angle = static_cast<float>(positions[row]) * inv_freq[threadIdx.x];
    float s, c;
    sincosf(angle, &s, &c);
    cosine[threadIdx.x] = c * attention_factor;
    sine[threadIdx.x] = s * attention_factor;
  }
  __syncthreads();
  const int64_t slot =
      store.slots != nullptr && row >= store.first_row ? store.slots[row - store.first_row] : -1;
  const int64_t kept = slot < 0 ? 0 : store.cache.At(slot);
  const int first_key = slot < 0 ? heads : heads - store.kv_heads;
  const int packs = pairs / kPack;
  for (int i = threadIdx.x; i < heads * packs; i += kThreads) {
    const int head = i / packs, at = i % packs * kPack;
    T* first = x.At(row, head) + at;
    auto a = LoadPack<T, kPack>(first), b = LoadPack<T, kPack>(first + pairs);
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const float c = cosine[at + e], s = sine[at + e];
      const float u = ToFloat(a.element[e]), v = ToFloat(b.element[e]);
      a.element[e] = FromFloat<T>(u * c - v * s);
      b.element[e] = FromFloat<T>(v * c + u * s);
    }
    StorePack<T, kPack>(a, first);
    StorePack<T, kPack>(b, first + pairs);
    if (head >= first_key) {
      T* const to = store.cache.k + kept + (head - first_key) * store.cache.head_stride + at;
      StorePack<T, kPack>(a, to);
      StorePack<T, kPack>(b, to + pairs);
    }
  }
  if (slot < 0) return;
  // V, and the dimensions of K that are not rotated.
  const int plain = 2 * pairs, row_packs = width / kPack;
  for (int i = threadIdx.x; i < store.kv_heads * row_packs; i += kThreads) {
    const int head = i / row_packs, at = i % row_packs * kPack;
    const int64_t to = kept + head * store.cache.head_stride + at;
    StorePack<T, kPack>(LoadPack<T, kPack>(store.v.At(row, head) + at), store.cache.v + to);
    if (at >= plain)
      StorePack<T, kPack>(LoadPack<T, kPack>(x.At(row, first_key + head) + at), store.cache.k + to);
  }
}

// `up.data` may be null. No __restrict__, because out may be gate.
template <typename In, typename T, int kPack>
__global__ void SiluMulKernel(Rows<const In> gate, Rows<const In> up, Rows<T> out, int width) {
  for (int c = threadIdx.x * kPack; c < width; c += kThreads * kPack) {
    const auto of_gate = LoadPack<In, kPack>(gate.At(blockIdx.x) + c);
    Pack<In, kPack> factor;
    if (up.data != nullptr) factor = LoadPack<In, kPack>(up.At(blockIdx.x) + c);
    Pack<T, kPack> pack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float g = ToFloat(of_gate.element[i]);
      const float u = up.data != nullptr ? ToFloat(factor.element[i]) : 1.0f;
      pack.element[i] = FromFloat<T>(g / (1.0f + expf(-g)) * u);
    }
    StorePack<T, kPack>(pack, out.At(blockIdx.x) + c);
  }
}

template <typename T, int kPack>
__global__ void AccumulateKernel(Rows<const float> x, Rows<T> out, int width) {
  for (int c = threadIdx.x * kPack; c < width; c += kThreads * kPack) {
    const auto added = LoadPack<float, kPack>(x.At(blockIdx.x) + c);
    auto pack = LoadPack<T, kPack>(out.At(blockIdx.x) + c);
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      pack.element[i] = FromFloat<T>(ToFloat(pack.element[i]) + added.element[i]);
    StorePack<T, kPack>(pack, out.At(blockIdx.x) + c);
  }
}

template <typename T, typename Out>
__global__ void AddBiasKernel(const T* bias, Rows<Out> out, int width) {
  for (int c = threadIdx.x; c < width; c += kThreads) {
    Out& x = out.At(blockIdx.x)[c];
    x = FromFloat<Out>(ToFloat(x) + ToFloat(bias[c]));
  }
}

// One block for a row of k and v.
template <typename T, int kPack>
__global__ void ReadFromCacheKernel(Rows<T> k, Rows<T> v, const int64_t* slots,
                                    CacheView<const T> cache, int heads, int width) {
  const int64_t base = cache.At(slots[blockIdx.x]);
  const int packs = width / kPack;
  for (int i = threadIdx.x; i < heads * packs; i += kThreads) {
    const int head = i / packs, c = i % packs * kPack;
    const int64_t at = base + head * cache.head_stride + c;
    StorePack<T, kPack>(LoadPack<T, kPack>(cache.k + at), k.At(blockIdx.x, head) + c);
    StorePack<T, kPack>(LoadPack<T, kPack>(cache.v + at), v.At(blockIdx.x, head) + c);
  }
}

struct PartialViews {
  const float* outs;
  int64_t out_part, out_row, out_head;
  const float* lses;
  int64_t lse_part, lse_row, lse_head;
};

// One warp for a row and head.
template <typename T>
__global__ void MergePartialsKernel(PartialViews in, Rows<T> out, Rows<float> lse, int parts,
                                    int64_t rows, int heads, int width) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= rows * heads) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t t = index / heads, h = index % heads;
  const float* lses = in.lses + t * in.lse_row + h * in.lse_head;
  SoftmaxState all;
  for (int p = 0; p < parts; ++p) all.row_max = fmaxf(all.row_max, lses[p * in.lse_part]);
  for (int p = 0; p < parts; ++p) all.Merge({lses[p * in.lse_part], 1}, kLog2E);
  const float normalizer = all.Normalizer();
  for (int c = lane; c < width; c += kWarp) {
    float sum = 0;
    for (int p = 0; p < parts; ++p) {
      // A part that saw no key counts for nothing, whatever its row holds.
      if (lses[p * in.lse_part] == -INFINITY) continue;
      const float weight = all.Rescale(lses[p * in.lse_part], kLog2E);
      sum += weight * in.outs[p * in.out_part + t * in.out_row + h * in.out_head + c];
    }
    out.At(t, h)[c] = FromFloat<T>(sum * normalizer);
  }
  // After all lanes have read the lses: `lse` may be one of them.
  __syncwarp();
  if (lse.data != nullptr && lane == 0) {
    lse.At(t)[h] = all.LogSumExp(1);
  }
}

dim3 Blocks(int64_t count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace

cudaError_t Embedding(const EmbeddingArgs& args, int32_t* error, cudaStream_t stream) {
  const TensorView &table = args.table, &ids = args.ids, &out = args.out;
  return WithElementAndPack(
      table.dtype, IsAligned16(table) && IsAligned16(out), [&](auto element, auto pack) {
        using T = decltype(element);
        return Launch(EmbeddingKernel<T, pack.value>, Blocks(ids.shape[0]), kThreads, 0, stream,
                      RowsOf<const T>(table), table.shape[0], ids.as<const int32_t>(),
                      RowsOf<T>(out), static_cast<int>(table.shape[1]), error);
      });
}

cudaError_t Enqueue(const RmsNormArgs& args, cudaStream_t stream) {
  const TensorView &x = args.x, &weight = args.weight, &out = args.out;
  const int heads = x.rank == 3 ? static_cast<int>(x.shape[1]) : 1;
  const int width = static_cast<int>(x.shape[x.rank - 1]);
  const int64_t rows = x.shape[0] * heads;
  return WithElementAndPack(
      x.dtype, IsAligned16(x) && IsAligned16(weight) && IsAligned16(out),
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int kPack = pack.value;
        const bool by_warp = width <= 16 * kWarp;
        return Launch(by_warp ? RmsNormKernel<T, kPack, kWarp> : RmsNormKernel<T, kPack, kThreads>,
                      Blocks(by_warp ? DivideUp(rows, kThreads / kWarp) : rows), kThreads, 0,
                      stream, RowsOf<const T>(x), weight.as<const T>(), args.epsilon,
                      RowsOf<T>(out), rows, heads, width);
      });
}

cudaError_t Enqueue(const RopeArgs& args, cudaStream_t stream) {
  const int pairs = static_cast<int>(args.inv_freq.shape[0]);
  const bool stores = args.store.slots.present();
  const bool aligned =
      IsAligned16(args.x) && pairs * static_cast<int64_t>(SizeOf(args.x.dtype)) % 16 == 0 &&
      (!stores ||
       (IsAligned16(args.v) && IsAligned16(args.store.k_cache) && IsAligned16(args.store.v_cache)));
  return WithElementAndPack(args.x.dtype, aligned, [&](auto element, auto pack) {
    using T = decltype(element);
    StoreArgs<T> store{};
    if (stores) {
      store = {args.store.slots.as<const int64_t>(), args.store_begin, RowsOf<const T>(args.v),
               CacheOf<T>(args.store.k_cache, args.store.v_cache),
               static_cast<int>(args.v.shape[1])};
    }
    return Launch(
        RopeKernel<T, pack.value>, Blocks(args.x.shape[0]), kThreads, 0, stream, RowsOf<T>(args.x),
        args.positions.as<const int32_t>(), args.inv_freq.as<const float>(), args.attention_factor,
        static_cast<int>(args.x.shape[1]), static_cast<int>(args.x.shape[2]), pairs, store);
  });
}

cudaError_t Enqueue(const SiluMulArgs& args, cudaStream_t stream) {
  const TensorView &gate = args.gate, &up = args.up, &out = args.out;
  const bool aligned = IsAligned16(gate) && IsAligned16(out) && (!up.present() || IsAligned16(up));
  const auto run = [&](auto in, auto element, auto pack) {
    using In = decltype(in);
    using T = decltype(element);
    return Launch(SiluMulKernel<In, T, pack.value>, Blocks(gate.shape[0]), kThreads, 0, stream,
                  RowsOf<const In>(gate), RowsOf<const In>(up), RowsOf<T>(out),
                  static_cast<int>(gate.shape[1]));
  };
  if (gate.dtype != out.dtype) {
    return WithElement(out.dtype, [&](auto element) {
      return WithFloatPack(aligned, [&](auto pack) { return run(float{}, element, pack); });
    });
  }
  return WithElementAndPack(gate.dtype, aligned,
                            [&](auto element, auto pack) { return run(element, element, pack); });
}

cudaError_t Enqueue(const AccumulateArgs& args, cudaStream_t stream) {
  const TensorView &x = args.x, &out = args.out;
  return WithElement(out.dtype, [&](auto element) {
    using T = decltype(element);
    return WithFloatPack(IsAligned16(x) && IsAligned16(out), [&](auto pack) {
      return Launch(AccumulateKernel<T, pack.value>, Blocks(x.shape[0]), kThreads, 0, stream,
                    RowsOf<const float>(x), RowsOf<T>(out), static_cast<int>(x.shape[1]));
    });
  });
}

cudaError_t Enqueue(const AccumulateRmsNormArgs& args, cudaStream_t stream) {
  const TensorView &x = args.x, &residual = args.residual, &weight = args.weight, &out = args.out;
  const bool aligned =
      IsAligned16(x) && IsAligned16(residual) && IsAligned16(weight) && IsAligned16(out);
  return WithElement(out.dtype, [&](auto element) {
    using T = decltype(element);
    return WithFloatPack(aligned, [&](auto pack) {
      return Launch(AccumulateRmsNormKernel<T, pack.value>, Blocks(x.shape[0]), kThreads, 0, stream,
                    RowsOf<const float>(x), RowsOf<T>(residual), weight.as<const T>(), args.epsilon,
                    RowsOf<T>(out), static_cast<int>(x.shape[1]));
    });
  });
}

cudaError_t AddBias(const TensorView& bias, const TensorView& out, cudaStream_t stream) {
  return WithElement(bias.dtype, [&](auto element) {
    using T = decltype(element);
    const int width = static_cast<int>(out.shape[1]);
    if (out.dtype == DType::kF32) {
      return Launch(AddBiasKernel<T, float>, Blocks(out.shape[0]), kThreads, 0, stream,
                    bias.as<const T>(), RowsOf<float>(out), width);
    }
    return Launch(AddBiasKernel<T, T>, Blocks(out.shape[0]), kThreads, 0, stream,
                  bias.as<const T>(), RowsOf<T>(out), width);
  });
}

cudaError_t Enqueue(const ReadFromCacheArgs& args, cudaStream_t stream) {
  const TensorView &k_cache = args.k_cache, &v_cache = args.v_cache, &k = args.k, &v = args.v;
  const bool aligned =
      IsAligned16(k) && IsAligned16(v) && IsAligned16(k_cache) && IsAligned16(v_cache);
  return WithElementAndPack(k.dtype, aligned, [&](auto element, auto pack) {
    using T = decltype(element);
    return Launch(ReadFromCacheKernel<T, pack.value>, Blocks(k.shape[0]), kThreads, 0, stream,
                  RowsOf<T>(k), RowsOf<T>(v), args.slots.as<const int64_t>(),
                  CacheOf<const T>(k_cache, v_cache), static_cast<int>(k.shape[1]),
                  static_cast<int>(k.shape[2]));
  });
}

cudaError_t Enqueue(const MergePartialsArgs& args, cudaStream_t stream) {
  const TensorView &outs = args.outs, &lses = args.lses, &out = args.out;
  const PartialViews in{outs.as<const float>(), outs.stride[0], outs.stride[1], outs.stride[2],
                        lses.as<const float>(), lses.stride[0], lses.stride[1], lses.stride[2]};
  const int64_t rows = out.shape[0], heads = out.shape[1];
  return WithElement(out.dtype, [&](auto element) {
    using T = decltype(element);
    return Launch(MergePartialsKernel<T>, Blocks(DivideUp(rows * heads, kThreads / kWarp)),
                  kThreads, 0, stream, in, RowsOf<T>(out), RowsOf<float>(args.lse),
                  static_cast<int>(outs.shape[0]), rows, static_cast<int>(heads),
                  static_cast<int>(out.shape[2]));
  });
}

}  // namespace apb::kernels::cuda
