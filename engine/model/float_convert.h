// Conversion of weights between float types, on the CPU.
#pragma once

#include <cstdint>

#include "kernels/tensor_view.h"

namespace apb::model {

// Converts `count` numbers between F32, BF16 and F16. Rounds to nearest, ties to even; infinities
// and NaN stay what they are. False if a finite number is too large for the target's type. Source
// and target must be aligned to their types and must not overlap.
bool ConvertFloats(kernels::DType source_type, const void* source, kernels::DType target_type,
                   void* target, int64_t count);

}  // namespace apb::model
