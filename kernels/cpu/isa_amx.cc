// The kernels compiled for AVX-512 with BF16 and AMX tiles (flags: CMakeLists.txt).
#include <immintrin.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels {
namespace isa_amx {
// clang-format off
#include "kernels/cpu/isa/vector.inc"
#include "kernels/cpu/isa/tile_math.inc"
#include "kernels/cpu/isa/attention.inc"
#include "kernels/cpu/isa/paged_attention.inc"
#include "kernels/cpu/isa/elementwise.inc"
#include "kernels/cpu/isa/linear_amx.inc"
// clang-format on
}  // namespace isa_amx

const IsaKernels kAmxKernels = {"amxbf16",        isa_amx::Attention,     isa_amx::PagedAttention,
                                isa_amx::Linear,  isa_amx::RmsNorm,       isa_amx::Rope,
                                isa_amx::SiluMul, isa_amx::Accumulate, isa_amx::MergePartials, isa_amx::KeyScores};

}  // namespace apb::kernels
