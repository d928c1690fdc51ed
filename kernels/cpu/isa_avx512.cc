// The kernels compiled for AVX-512 with BF16 (flags: CMakeLists.txt).
#include <immintrin.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels {
namespace isa_avx512 {
// clang-format off
#include "kernels/cpu/isa/vector.inc"
#include "kernels/cpu/isa/tile_math.inc"
#include "kernels/cpu/isa/attention.inc"
#include "kernels/cpu/isa/paged_attention.inc"
#include "kernels/cpu/isa/elementwise.inc"
// clang-format on
}  // namespace isa_avx512

const IsaKernels kAvx512Kernels = {
    "avx512bf16",        isa_avx512::Attention,     isa_avx512::PagedAttention,
    isa_avx512::Linear,  isa_avx512::RmsNorm,       isa_avx512::Rope,
    isa_avx512::SiluMul, isa_avx512::Accumulate, isa_avx512::MergePartials, isa_avx512::KeyScores};

}  // namespace apb::kernels
