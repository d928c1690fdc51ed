#include "kernels/cpu/block_linear.h"

#include <bit>
#include <vector>

#include "kernels/weight_blocks.h"

namespace apb::kernels {
namespace {

float ToFloat(float x) { return x; }
float ToFloat(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
void Store(float value, float& out) { out = value; }
void Store(float value, BFloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  out.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// In 16 sums, so that compilers can use vectors.
template <typename T>
float Dot(const T* x, const float* weight, int64_t count) {
  constexpr int kSums = 16;
  float sums[kSums] = {};
  for (int64_t i = 0; i < count; i += kSums)
    for (int j = 0; j < kSums; ++j) sums[j] += ToFloat(x[i + j]) * weight[i + j];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

template <typename X, typename Out>
void Multiply(const LinearArgs& a, int threads) {
  const int64_t in = a.x.shape[1];
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> weight(in);  // of one row
#pragma omp for schedule(static)
    for (int64_t o = 0; o < a.weight.shape[0]; ++o) {
      DecodeBlocks(a.weight.dtype, a.weight.Rows(o, o + 1).data, in, weight.data());
      const float bias = a.bias.present() ? ToFloat(a.bias.as<X>()[o]) : 0;
      for (int64_t t = 0; t < a.x.shape[0]; ++t) {
        Out& out = a.out.as<Out>()[t * a.out.stride[0] + o];
        const float before = a.accumulate ? ToFloat(out) : 0;
        Store(Dot(a.x.as<X>() + t * a.x.stride[0], weight.data(), in) + bias + before, out);
      }
    }
  }
}

}  // namespace

void BlockLinearOnCpu(const LinearArgs& args, int threads) {
  if (args.x.dtype == DType::kF32) return Multiply<float, float>(args, threads);
  if (args.out.dtype == DType::kF32) return Multiply<BFloat16, float>(args, threads);
  Multiply<BFloat16, BFloat16>(args, threads);
}

}  // namespace apb::kernels
