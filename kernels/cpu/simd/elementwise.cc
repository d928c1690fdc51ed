// Norms, rotary embedding, activation, sums, the combine of partial results, and key scores.
#include <math.h>
#include <omp.h>

#include "kernels/cpu/simd/kernels.h"
#include "kernels/cpu/simd/softmax_state.h"

namespace apb::kernels::APB_ISA {

template <typename T>
static void NormRow(const T* x, const T* weight, int64_t n, float epsilon, T* out) {
  Vec squares{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec v = LoadAs(x + i);
    squares += v * v;
  }
  float sum = SumOf(squares);
  for (; i < n; ++i) sum += ToFloat(x[i]) * ToFloat(x[i]);
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + epsilon);
  for (i = 0; i + kLanes <= n; i += kLanes)
    StoreAs(out + i, LoadAs(x + i) * Splat(inverse) * LoadAs(weight + i));
  for (; i < n; ++i) Assign(out[i], ToFloat(x[i]) * inverse * ToFloat(weight[i]));
}

bool Run(const RmsNormArgs& args, int threads, Scratch&) {
  const TensorView &x = args.x, &weight = args.weight, &out = args.out;
  const int64_t heads = x.rank == 3 ? x.shape[1] : 1, n = x.shape[x.rank - 1],
                rows = x.shape[0] * heads;
  WithType(x.dtype, [&](auto* tag) {
    using E = typename ElementOf<decltype(tag)>::type;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * n > 16384)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = r / heads, h = r % heads;
      NormRow(
          static_cast<const E*>(x.data) + t * x.stride[0] + (x.rank == 3 ? h * x.stride[1] : 0),
          static_cast<const E*>(weight.data), n, args.epsilon,
          static_cast<E*>(out.data) + t * out.stride[0] + (x.rank == 3 ? h * out.stride[1] : 0));
    }
  });
  return true;
}

template <typename T>
static void RopeRow(T* x, const float* cosines, const float* sines, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    Vec a = LoadAs(x + i), b = LoadAs(x + half + i), c = Load(cosines + i), s = Load(sines + i);
    StoreAs(x + i, a * c - b * s);
    StoreAs(x + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = ToFloat(x[i]), b = ToFloat(x[half + i]);
    Assign(x[i], a * cosines[i] - b * sines[i]);
    Assign(x[half + i], b * cosines[i] + a * sines[i]);
  }
}

bool Rope(const RopeArgs& args, int threads, Scratch&) {
  const int64_t rows = args.x.shape[0], heads = args.x.shape[1], half = args.inv_freq.shape[0];
  const float* inv_freq = static_cast<const float*>(args.inv_freq.data);
  const int32_t* positions = static_cast<const int32_t*>(args.positions.data);
  WithType(args.x.dtype, [&](auto* tag) {
    using E = typename ElementOf<decltype(tag)>::type;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 8)
    for (int64_t t = 0; t < rows; ++t) {
      alignas(64) float cosines[128], sines[128];
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[i];
        cosines[i] = cosf(angle) * args.attention_factor;
        sines[i] = sinf(angle) * args.attention_factor;
      }
      E* x = static_cast<E*>(args.x.data) + t * args.x.stride[0];
      for (int64_t h = 0; h < heads; ++h) RopeRow(x + h * args.x.stride[1], cosines, sines, half);
    }
  });
  return true;
}

static inline Vec Silu(Vec x) {
  // x * sigmoid(x). The argument of the exponential is never positive.
  Vec magnitude = x < Vec{} ? -x : x;
  Vec e = Exp2(magnitude * Splat(-kLog2e));
  Vec sigmoid = Splat(1.0f) / (Splat(1.0f) + e);
  return x * (x < Vec{} ? Splat(1.0f) - sigmoid : sigmoid);
}

template <typename E, typename O>
static bool SiluMulOf(const SiluMulArgs& args, int threads) {
  const TensorView &gate = args.gate, &up = args.up, &out = args.out;
  const int64_t rows = gate.shape[0], n = gate.shape[1];
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * n > 16384)
  for (int64_t r = 0; r < rows; ++r) {
    const E* g = static_cast<const E*>(gate.data) + r * gate.stride[0];
    const E* u = up.data == nullptr ? nullptr : static_cast<const E*>(up.data) + r * up.stride[0];
    O* o = static_cast<O*>(out.data) + r * out.stride[0];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Vec y = Silu(LoadAs(g + i));
      StoreAs(o + i, u == nullptr ? y : y * LoadAs(u + i));
    }
    for (; i < n; ++i) {
      const float y = Silu(Splat(ToFloat(g[i])))[0];
      Assign(o[i], u == nullptr ? y : y * ToFloat(u[i]));
    }
  }
  return true;
}

bool Run(const SiluMulArgs& args, int threads, Scratch&) {
  if (args.out.dtype == DType::kF32) return SiluMulOf<float, float>(args, threads);
  if (args.gate.dtype == DType::kF32) return SiluMulOf<float, uint16_t>(args, threads);
  return SiluMulOf<uint16_t, uint16_t>(args, threads);
}

bool Run(const AccumulateArgs& args, int threads, Scratch&) {
  const TensorView &x = args.x, &out = args.out;
  const int64_t rows = out.shape[0], n = out.shape[1];
  WithType(out.dtype, [&](auto* tag) {
    using E = typename ElementOf<decltype(tag)>::type;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * n > 16384)
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = static_cast<const float*>(x.data) + r * x.stride[0];
      E* to = static_cast<E*>(out.data) + r * out.stride[0];
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) StoreAs(to + i, LoadAs(to + i) + Load(from + i));
      for (; i < n; ++i) Assign(to[i], ToFloat(to[i]) + from[i]);
    }
  });
  return true;
}

bool Run(const MergePartialsArgs& args, int threads, Scratch&) {
  const TensorView &outs = args.outs, &lses = args.lses, &out = args.out, &lse = args.lse;
  const int64_t parts = outs.shape[0], tokens = outs.shape[1], heads = outs.shape[2],
                d = outs.shape[3];
  WithType(out.dtype, [&](auto* tag) {
    using E = typename ElementOf<decltype(tag)>::type;
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * heads * d > 16384)
    for (int64_t r = 0; r < tokens * heads; ++r) {
      const int64_t t = r / heads, h = r % heads;
      CombineParts(
          static_cast<const float*>(outs.data) + t * outs.stride[1] + h * outs.stride[2],
          outs.stride[0],
          static_cast<const float*>(lses.data) + t * lses.stride[1] + h * lses.stride[2],
          lses.stride[0], parts, d,
          static_cast<E*>(out.data) + t * out.stride[0] + h * out.stride[1],
          lse.data == nullptr ? nullptr : static_cast<float*>(lse.data) + t * lse.stride[0] + h);
    }
  });
  return true;
}

bool Run(const KeyScoreArgs& args, int threads, Scratch&) {
  const int64_t tokens = args.k.shape[0], kv_heads = args.k.shape[1], d = args.k.shape[2];
  const int64_t queries = args.query.shape[0], group = args.query.shape[1] / kv_heads;
  WithType(args.k.dtype, [&](auto* tag) {
    using E = typename ElementOf<decltype(tag)>::type;
    for (int64_t j = 0; j < kv_heads; ++j) {
      // The mean of dot products is the dot product with the mean query.
      alignas(64) float mean[256] = {};
      for (int64_t m = 0; m < queries; ++m) {
        for (int64_t h = j * group; h < (j + 1) * group; ++h) {
          const E* q = static_cast<const E*>(args.query.data) + m * args.query.stride[0] +
                       h * args.query.stride[1];
          for (int64_t c = 0; c < d; ++c) mean[c] += ToFloat(q[c]);
        }
      }
      const float factor = queries > 0 ? args.scale / static_cast<float>(queries * group) : 0.0f;
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens > 256)
      for (int64_t t = 0; t < tokens; ++t) {
        const E* k =
            static_cast<const E*>(args.k.data) + t * args.k.stride[0] + j * args.k.stride[1];
        Vec s{};
        int64_t c = 0;
        for (; c + kLanes <= d; c += kLanes) s += LoadAs(k + c) * Load(mean + c);
        float sum = SumOf(s);
        for (; c < d; ++c) sum += ToFloat(k[c]) * mean[c];
        static_cast<float*>(args.scores.data)[t * args.scores.stride[0] + j] = sum * factor;
      }
    }
  });
  return true;
}

}  // namespace apb::kernels::APB_ISA
