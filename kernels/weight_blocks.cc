// Quantization of weights to blocks, and back.
#include "kernels/weight_blocks.h"

#include <algorithm>
#include <cmath>

namespace apb::kernels {
namespace {

constexpr int kLength = static_cast<int>(kBlockLength);
constexpr float kMaxScale = 65504.0f;  // of half precision

bool Encode(const float* x, I8Block& block) {
  float top = 0;
  for (int i = 0; i < kLength; ++i) top = std::max(top, std::abs(x[i]));
  if (top > 127 * kMaxScale) return false;
  block.scale = FloatToFloat16(top / 127);
  // Divides by the rounded scale, by which the weights will be multiplied. It is 0 if all weights
  // are too small for half precision.
  const float scale = Float16ToFloat(block.scale), inverse = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < kLength; ++i) {
    const float q = std::clamp(x[i] * inverse, -127.0f, 127.0f);
    block.q[i] = static_cast<int8_t>(static_cast<int>(q + 127.5f) - 127);
  }
  return true;
}

// A choice of scale and zero for 32 weights scale * (n - zero), and its error.
struct I4Fit {
  Float16 scale{0}, zero{0};
  float error = 0;  // sum of squares
};

// Writes the integers whose weights are nearest to x.
void NearestI4(const float* x, float scale, float zero, int* n) {
  const float inverse = 1 / scale;
  for (int i = 0; i < kLength; ++i)
    n[i] = static_cast<int>(std::clamp(x[i] * inverse + zero, 0.0f, 15.0f) + 0.5f);
}

// Sets scale and zero to those with the smallest squared error for these integers. Leaves them if
// all integers are the same.
void LeastSquares(const float* x, const int* n, float& scale, float& zero) {
  float sum_n = 0, sum_nn = 0, sum_x = 0, sum_nx = 0;
  for (int i = 0; i < kLength; ++i) {
    const float at = static_cast<float>(n[i]);
    sum_n += at;
    sum_nn += at * at;
    sum_x += x[i];
    sum_nx += at * x[i];
  }
  const float determinant = kLength * sum_nn - sum_n * sum_n;
  const float slope = (kLength * sum_nx - sum_n * sum_x) / std::max(determinant, 1.0f);
  if (determinant > 0 && slope > 0) {
    scale = slope;
    zero = (sum_n - sum_x / slope) / kLength;
  }
}

// Maps weights from low to high (low < high) to 0..15, then fits scale and zero to these integers.
// The error is INFINITY if half precision cannot hold them.
I4Fit FitRange(const float* x, float low, float high) {
  int n[kLength];
  float scale = (high - low) / 15, zero = -low / scale;
  NearestI4(x, scale, zero, n);
  LeastSquares(x, n, scale, zero);
  I4Fit fit{FloatToFloat16(scale), FloatToFloat16(zero), INFINITY};
  scale = Float16ToFloat(fit.scale);
  zero = Float16ToFloat(fit.zero);
  if (!(scale > 0) || !(scale <= kMaxScale) || !(std::abs(zero) <= kMaxScale)) return fit;
  NearestI4(x, scale, zero, n);
  float error = 0;
  for (int i = 0; i < kLength; ++i) {
    const float off = x[i] - scale * (static_cast<float>(n[i]) - zero);
    error += off * off;
  }
  fit.error = error;
  return fit;
}

bool Encode(const float* x, I4Block& block) {
  const auto [low, high] = std::minmax_element(x, x + kLength);
  const float range = *high - *low, top = std::max(std::abs(*low), std::abs(*high));
  if (!(top <= kMaxScale)) return false;
  // For equal weights: the magnitude is the scale, n is 0 and the zero is 1 or -1. The same serves
  // weights of a range so small that half precision has no 15th of it; around 0 they become 0.
  I4Fit best{FloatToFloat16(*low < 0 && *high > 0 ? 0 : top),
             FloatToFloat16(*low < 0 ? 1.0f : -1.0f), INFINITY};
  uint8_t n[kLength] = {};
  if (range > 0) {
    for (int step = 0; step <= 8; ++step) {
      const float cut = range * 0.03f * static_cast<float>(step) / 2;
      const I4Fit fit = FitRange(x, *low + cut, *high - cut);
      if (fit.error < best.error) best = fit;
    }
  }
  if (best.error < INFINITY) {
    int nearest[kLength];
    NearestI4(x, Float16ToFloat(best.scale), Float16ToFloat(best.zero), nearest);
    for (int i = 0; i < kLength; ++i) n[i] = static_cast<uint8_t>(nearest[i]);
  }
  block.scale = best.scale;
  block.zero = best.zero;
  PackI4(n, block.q);
  return true;
}

template <typename Block>
bool EncodeAll(const float* weights, int64_t count, void* out) {
  auto* blocks = static_cast<Block*>(out);
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(weights[i])) return false;
  for (int64_t b = 0; b < count / kBlockLength; ++b)
    if (!Encode(weights + b * kBlockLength, blocks[b])) return false;
  return true;
}

template <typename Block>
void DecodeAll(const void* in, int64_t count, float* out) {
  const auto* blocks = static_cast<const Block*>(in);
  for (int64_t b = 0; b < count / kBlockLength; ++b) DecodeBlock(blocks[b], out + b * kBlockLength);
}

}  // namespace

void DecodeBlocks(DType type, const void* blocks, int64_t count, float* out) {
  if (type == DType::kI8Block) return DecodeAll<I8Block>(blocks, count, out);
  DecodeAll<I4Block>(blocks, count, out);
}

bool EncodeBlocks(const float* weights, int64_t count, DType type, void* blocks) {
  return type == DType::kI8Block ? EncodeAll<I8Block>(weights, count, blocks)
                                 : EncodeAll<I4Block>(weights, count, blocks);
}

}  // namespace apb::kernels
