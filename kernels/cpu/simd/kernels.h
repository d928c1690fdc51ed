// The functions of this folder that the table of its instruction set lists (kernels.cc).
#pragma once

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels::APB_ISA {

#define APB_DECLARE(Args) bool Run(const Args& args, int threads, Scratch& scratch);
APB_SIMD_OPERATIONS(APB_DECLARE)
#undef APB_DECLARE
bool Rope(const RopeArgs& args, int threads, Scratch& scratch);
bool Linear(const LinearArgs& args, int threads, Scratch& scratch);
bool PackedLinear(const LinearArgs& args, int threads, Scratch& scratch);

}  // namespace apb::kernels::APB_ISA
