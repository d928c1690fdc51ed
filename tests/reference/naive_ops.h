// The operations of kernels/backend.h in float64, written to be read: the oracle of every backend.
// Inputs are views of f32, bf16, f16 or (weights of Linear) a block type, in CPU memory. Outputs
// are vectors of double in row-major order.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attention_args.h"
#include "kernels/backend.h"

namespace apb::reference {

float BFloat16ToFloat(uint16_t bits);
uint16_t FloatToBFloat16(float value);
// Half precision by its definition; kernels/float16.h converts by bits.
float Float16ToFloat(uint16_t bits);
uint16_t FloatToFloat16(float value);

// A tensor that owns its memory, with a view of it: f32, bf16, f16, i32 or a block type (rows of
// multiples of 32).
struct HostTensor {
  std::vector<std::byte> bytes;
  kernels::TensorView view;
  static HostTensor Zeros(kernels::DType dtype, std::initializer_list<int64_t> shape);
  // Normally distributed numbers with mean 0; random blocks for a block type.
  static HostTensor Random(kernels::DType dtype, std::initializer_list<int64_t> shape,
                           std::mt19937& rng, float deviation = 1.0f);
  static HostTensor Integers(const std::vector<int32_t>& values);
};

// The largest relative rounding error of `dtype` for normal numbers: 2^-8, 2^-11 or 2^-24.
double Roundoff(kernels::DType dtype);

// Sets element `at` of a view's memory to `value`, rounded to the view's type.
void Put(const kernels::TensorView& view, int64_t at, float value);
// The element of a view with these indices along the dimensions.
double At(const kernels::TensorView& view, int64_t a, int64_t b = 0, int64_t c = 0, int64_t e = 0);
std::vector<double> ToDoubles(const kernels::TensorView& view);

struct AttentionResult {
  std::vector<double> out;  // [T, n_q, d]
  std::vector<double> lse;  // [T, n_q]
};
AttentionResult Attention(const kernels::AttentionArgs& args);
AttentionResult PagedAttention(const kernels::PagedAttentionArgs& args);
std::vector<double> Linear(const kernels::LinearArgs& args);  // without accumulate
std::vector<double> RmsNorm(const kernels::TensorView& x, const kernels::TensorView& weight,
                            double epsilon);
std::vector<double> Rope(const kernels::RopeArgs& args);
std::vector<double> SiluMul(const kernels::TensorView& gate, const kernels::TensorView& up);
AttentionResult MergePartials(const kernels::TensorView& outs, const kernels::TensorView& lses);
std::vector<double> KeyScores(const kernels::KeyScoreArgs& args);

}  // namespace apb::reference
