// The kernels compiled for AVX2 and FMA (flags: CMakeLists.txt).
#include <immintrin.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels {
namespace isa_avx2 {
// clang-format off
#include "kernels/cpu/isa/vector.inc"
#include "kernels/cpu/isa/tile_math.inc"
#include "kernels/cpu/isa/attention.inc"
#include "kernels/cpu/isa/paged_attention.inc"
#include "kernels/cpu/isa/elementwise.inc"
// clang-format on
}  // namespace isa_avx2

const IsaKernels kAvx2Kernels = {"avx2",
                                 isa_avx2::Attention,
                                 isa_avx2::PagedAttention,
                                 isa_avx2::Linear,
                                 isa_avx2::RmsNorm,
                                 isa_avx2::Rope,
                                 isa_avx2::SiluMul, isa_avx2::Accumulate,
                                 isa_avx2::MergePartials,
                                 isa_avx2::KeyScores};

}  // namespace apb::kernels
