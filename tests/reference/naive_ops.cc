#include "tests/reference/naive_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace apb::reference {

using kernels::DType;
using kernels::TensorView;

float BFloat16ToFloat(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
uint16_t FloatToBFloat16(float value) {
  uint32_t u;
  std::memcpy(&u, &value, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float Float16ToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 0    ? std::ldexp(fraction, -24)
                 : exponent == 31 ? fraction == 0 ? HUGE_VAL : std::nan("")
                                  : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>(bits & 0x8000 ? -value : value);
}
uint16_t FloatToFloat16(float value) {
  const double magnitude = std::abs(static_cast<double>(value));
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(magnitude)) return 0x7fff;
  if (std::isinf(magnitude)) return sign | 0x7c00;
  // Numbers with the same exponent are equally spaced; below 2^-14 the spacing is that above it.
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -14, -14);
  const double steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // ties to even
  const double bits = (exponent + 14) * 1024.0 + steps;
  return sign | static_cast<uint16_t>(std::min(bits, 31 * 1024.0));
}

double Roundoff(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-24;
}

namespace {

// Element `at` of a view of blocks, by the definition of kernels/weight_blocks.h.
double InBlock(const TensorView& view, int64_t at) {
  const bool eight = view.dtype == DType::kI8Block;
  const auto* block = view.as<uint8_t>() + at / 32 * (eight ? 34 : 20);
  const auto half = [&](int byte) {
    return double{Float16ToFloat(static_cast<uint16_t>(block[byte] | block[byte + 1] << 8))};
  };
  const int i = static_cast<int>(at % 32);
  if (eight) return half(0) * static_cast<int8_t>(block[2 + i]);
  const int n = i < 16 ? block[4 + i] & 15 : block[4 + i - 16] >> 4;
  return half(0) * (n - half(2));
}

}  // namespace

void Put(const TensorView& view, int64_t at, float value) {
  if (view.dtype == DType::kF32) view.as<float>()[at] = value;
  if (view.dtype == DType::kBF16) view.as<uint16_t>()[at] = FloatToBFloat16(value);
  if (view.dtype == DType::kF16) view.as<uint16_t>()[at] = FloatToFloat16(value);
}

HostTensor HostTensor::Zeros(DType dtype, std::initializer_list<int64_t> shape) {
  HostTensor t;
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  t.bytes.resize(BytesOf(dtype, n) + 1);
  t.view = TensorView::Contiguous(t.bytes.data(), dtype, shape);
  return t;
}

HostTensor HostTensor::Random(DType dtype, std::initializer_list<int64_t> shape, std::mt19937& rng,
                              float deviation) {
  HostTensor t = Zeros(dtype, shape);
  std::normal_distribution<float> normal(0, deviation);
  if (IsBlockType(dtype)) {  // random integers, scales of both signs, zeros that are not integers
    const size_t size = BytesOf(dtype, kernels::kBlockLength);
    for (std::byte& byte : t.bytes) byte = static_cast<std::byte>(rng());
    for (size_t at = 0; at + size <= t.bytes.size(); at += size) {
      const bool eight = dtype == DType::kI8Block;
      const uint16_t halves[] = {FloatToFloat16(normal(rng) / (eight ? 74 : 5)),
                                 FloatToFloat16(7.5f + 3 * normal(rng) / deviation)};
      std::memcpy(&t.bytes[at], halves, eight ? 2 : 4);
    }
    return t;
  }
  for (int64_t i = 0; i < t.view.numel(); ++i) Put(t.view, i, normal(rng));
  return t;
}

HostTensor HostTensor::Integers(const std::vector<int32_t>& values) {
  HostTensor t = Zeros(DType::kI32, {static_cast<int64_t>(values.size())});
  if (!values.empty()) std::memcpy(t.bytes.data(), values.data(), values.size() * 4);
  return t;
}

double At(const TensorView& view, int64_t a, int64_t b, int64_t c, int64_t e) {
  int64_t at = a * view.stride[0];
  if (view.rank > 1) at += b * view.stride[1];
  if (view.rank > 2) at += c * view.stride[2];
  if (view.rank > 3) at += e * view.stride[3];
  if (IsBlockType(view.dtype)) return InBlock(view, at);
  if (view.dtype == DType::kBF16) return BFloat16ToFloat(view.as<uint16_t>()[at]);
  if (view.dtype == DType::kF16) return Float16ToFloat(view.as<uint16_t>()[at]);
  return view.as<float>()[at];
}

std::vector<double> ToDoubles(const TensorView& view) {
  std::vector<double> out;
  const auto extent = [&](int d) { return d < view.rank ? view.shape[d] : 1; };
  for (int64_t a = 0; a < extent(0); ++a)
    for (int64_t b = 0; b < extent(1); ++b)
      for (int64_t c = 0; c < extent(2); ++c)
        for (int64_t e = 0; e < extent(3); ++e) out.push_back(At(view, a, b, c, e));
  return out;
}

namespace {

// The softmax-weighted sum of one row's visible values in one head, and its log-sum-exp.
void Reduce(const std::vector<std::pair<double, std::vector<double>>>& seen, int64_t d, double* out,
            double* lse) {
  double top = -std::numeric_limits<double>::infinity(), total = 0;
  for (const auto& [score, value] : seen) top = std::max(top, score);
  std::fill(out, out + d, 0.0);
  for (const auto& [score, value] : seen) {
    const double weight = std::exp(score - top);
    total += weight;
    for (int64_t c = 0; c < d; ++c) out[c] += weight * value[c];
  }
  for (int64_t c = 0; c < d && total > 0; ++c) out[c] /= total;
  *lse = seen.empty() ? top : top + std::log(total);
}

}  // namespace

AttentionResult Attention(const kernels::AttentionArgs& args) {
  const int64_t rows = args.q.shape[0], heads = args.q.shape[1], d = args.q.shape[2];
  AttentionResult result{std::vector<double>(rows * heads * d), std::vector<double>(rows * heads)};
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<std::pair<double, std::vector<double>>> seen;
      for (const kernels::KeySegment& segment : args.keys) {
        const auto visibility = segment.visible_to_group[t < args.group_split ? 0 : 1];
        for (int64_t s = 0; s < segment.k.shape[0]; ++s) {
          if (visibility == kernels::Visibility::kNone) continue;
          if (visibility == kernels::Visibility::kCausal &&
              segment.positions.as<int32_t>()[s] > args.q_positions.as<int32_t>()[t]) {
            continue;
          }
          const int64_t j = h / (heads / segment.k.shape[1]);
          double score = 0;
          std::vector<double> value(d);
          for (int64_t c = 0; c < d; ++c) {
            score += At(args.q, t, h, c) * At(segment.k, s, j, c);
            value[c] = At(segment.v, s, j, c);
          }
          seen.emplace_back(score * args.scale, std::move(value));
        }
      }
      Reduce(seen, d, &result.out[(t * heads + h) * d], &result.lse[t * heads + h]);
    }
  }
  return result;
}

AttentionResult PagedAttention(const kernels::PagedAttentionArgs& args) {
  const int64_t rows = args.q.shape[0], heads = args.q.shape[1], d = args.q.shape[2];
  const int64_t block_size = args.k_cache.shape[2], group = heads / args.k_cache.shape[1];
  AttentionResult result{std::vector<double>(rows * heads * d), std::vector<double>(rows * heads)};
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const kernels::PagedSequence& sequence = args.sequences[i];
    const kernels::PagedRows& tokens = args.rows[i];
    for (int64_t t = tokens.begin; t < tokens.begin + tokens.count; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<std::pair<double, std::vector<double>>> seen;
        for (int64_t s = 0; s < sequence.slot_count; ++s) {
          if (s >= sequence.causal_begin && sequence.slot_positions[s - sequence.causal_begin] >
                                                args.q_positions.as<int32_t>()[t])
            continue;
          const int64_t block = sequence.block_table[s / block_size];
          double score = 0;
          std::vector<double> value(d);
          for (int64_t c = 0; c < d; ++c) {
            score += At(args.q, t, h, c) * At(args.k_cache, block, h / group, s % block_size, c);
            value[c] = At(args.v_cache, block, h / group, s % block_size, c);
          }
          seen.emplace_back(score * args.scale, std::move(value));
        }
        Reduce(seen, d, &result.out[(t * heads + h) * d], &result.lse[t * heads + h]);
      }
    }
  }
  return result;
}

std::vector<double> Linear(const kernels::LinearArgs& args) {
  std::vector<double> out;
  for (int64_t r = 0; r < args.x.shape[0]; ++r) {
    for (int64_t o = 0; o < args.weight.shape[0]; ++o) {
      double sum = args.bias.present() ? At(args.bias, o) : 0.0;
      for (int64_t i = 0; i < args.x.shape[1]; ++i) sum += At(args.x, r, i) * At(args.weight, o, i);
      out.push_back(sum);
    }
  }
  return out;
}

std::vector<double> RmsNorm(const TensorView& x, const TensorView& weight, double epsilon) {
  std::vector<double> out = ToDoubles(x);
  const size_t n = x.shape[x.rank - 1];
  for (size_t begin = 0; begin < out.size(); begin += n) {
    double squares = 0;
    for (size_t i = 0; i < n; ++i) squares += out[begin + i] * out[begin + i];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon);
    for (size_t i = 0; i < n; ++i) out[begin + i] *= inverse * At(weight, static_cast<int64_t>(i));
  }
  return out;
}

std::vector<double> Rope(const kernels::RopeArgs& args) {
  std::vector<double> out = ToDoubles(args.x);
  const int64_t heads = args.x.shape[1], d = args.x.shape[2], half = args.inv_freq.shape[0];
  for (int64_t t = 0; t < args.x.shape[0]; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      double* row = &out[(t * heads + h) * d];
      for (int64_t i = 0; i < half; ++i) {
        // The angle is a float product by contract: positions and frequencies are floats in every
        // checkpoint's code.
        const double angle =
            static_cast<float>(args.positions.as<int32_t>()[t]) * args.inv_freq.as<float>()[i];
        const double c = std::cos(angle) * args.attention_factor,
                     s = std::sin(angle) * args.attention_factor;
        const double a = row[i], b = row[half + i];
        row[i] = a * c - b * s;
        row[half + i] = b * c + a * s;
      }
    }
  }
  return out;
}

std::vector<double> SiluMul(const TensorView& gate, const TensorView& up) {
  std::vector<double> out = ToDoubles(gate);
  const std::vector<double> factor =
      up.present() ? ToDoubles(up) : std::vector<double>(out.size(), 1.0);
  for (size_t i = 0; i < out.size(); ++i) out[i] = out[i] / (1.0 + std::exp(-out[i])) * factor[i];
  return out;
}

AttentionResult MergePartials(const TensorView& outs, const TensorView& lses) {
  const int64_t parts = outs.shape[0], rows = outs.shape[1], heads = outs.shape[2],
                d = outs.shape[3];
  AttentionResult result{std::vector<double>(rows * heads * d), std::vector<double>(rows * heads)};
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<std::pair<double, std::vector<double>>> seen;
      for (int64_t p = 0; p < parts; ++p) {
        if (std::isinf(At(lses, p, t, h))) continue;
        std::vector<double> value(d);
        for (int64_t c = 0; c < d; ++c) value[c] = At(outs, p, t, h, c);
        seen.emplace_back(At(lses, p, t, h), std::move(value));
      }
      Reduce(seen, d, &result.out[(t * heads + h) * d], &result.lse[t * heads + h]);
    }
  }
  return result;
}

std::vector<double> KeyScores(const kernels::KeyScoreArgs& args) {
  const int64_t heads = args.k.shape[1], group = args.query.shape[1] / heads,
                m = args.query.shape[0];
  std::vector<double> out;
  for (int64_t t = 0; t < args.k.shape[0]; ++t) {
    for (int64_t j = 0; j < heads; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < m; ++r)
        for (int64_t h = j * group; h < (j + 1) * group; ++h)
          for (int64_t c = 0; c < args.k.shape[2]; ++c)
            sum += At(args.query, r, h, c) * At(args.k, t, j, c);
      out.push_back(sum * args.scale / static_cast<double>(m * group));
    }
  }
  return out;
}

}  // namespace apb::reference
