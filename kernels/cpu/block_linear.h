// Matrix products by quantized weights on any CPU.
#pragma once

#include "kernels/backend.h"

namespace apb::kernels {

// As Backend::Linear, of checked arguments whose weight has a block type.
void BlockLinearOnCpu(const LinearArgs& args, int threads);

}  // namespace apb::kernels
