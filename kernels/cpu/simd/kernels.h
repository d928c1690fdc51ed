// What each file of this folder gives to the table of its instruction set (kernels.cc): the
// operations of IsaKernels, with its rules.
#pragma once

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels::APB_ISA {

bool Attention(const AttentionArgs& args, int threads, Scratch& scratch);
bool PagedAttention(const PagedAttentionArgs& args, int threads, Scratch& scratch);
bool Linear(const LinearArgs& args, int threads, Scratch& scratch);
bool PackedLinear(const LinearArgs& args, int threads, Scratch& scratch);
void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
             int threads);
void Rope(const RopeArgs& args, int threads);
void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out, int threads);
void Accumulate(const TensorView& x, const TensorView& out, int threads);
void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                   const TensorView& lse, int threads);
void KeyScores(const KeyScoreArgs& args, int threads);

}  // namespace apb::kernels::APB_ISA
