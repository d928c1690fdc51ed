// The operations of kernels/backend.h in float64, written for reading: the oracle of every backend.
// Inputs are views of f32, bf16, f16 or (weights of Linear) a block type in host memory; outputs
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
// Half precision by its definition, not by its bits (kernels/float16.h does that).
float Float16ToFloat(uint16_t bits);
uint16_t FloatToFloat16(float value);

// An owned random (or zero) tensor of f32, bf16, f16 or, rows in multiples of 32, a block type with
// a view.
struct HostTensor {
  std::vector<std::byte> bytes;
  kernels::TensorView view;
  static HostTensor Zeros(kernels::DType dtype, std::initializer_list<int64_t> shape);
  // Normal numbers, mean 0.
  static HostTensor Random(kernels::DType dtype, std::initializer_list<int64_t> shape,
                           std::mt19937& rng, float deviation = 1.0f);
  static HostTensor Integers(const std::vector<int32_t>& values);
};

// What `dtype` rounds normal numbers to, relative to them: 2^-8, 2^-11 or 2^-24.
double Roundoff(kernels::DType dtype);

// Element number `at` of the memory of a view, rounded to its type.
void Put(const kernels::TensorView& view, int64_t at, float value);
// Element of a view by index along each dimension.
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
