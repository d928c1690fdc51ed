// The kernels compiled for any CPU (flags: CMakeLists.txt).
#include <immintrin.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/isa_kernels.h"

namespace apb::kernels {
namespace isa_portable {
// clang-format off
#include "kernels/cpu/isa/vector.inc"
#include "kernels/cpu/isa/tile_math.inc"
#include "kernels/cpu/isa/attention.inc"
#include "kernels/cpu/isa/paged_attention.inc"
#include "kernels/cpu/isa/elementwise.inc"
// clang-format on
}  // namespace isa_portable

const IsaKernels kPortableKernels = {"portable",
                                     isa_portable::Attention,
                                     isa_portable::PagedAttention,
                                     isa_portable::Linear,
                                     isa_portable::RmsNorm,
                                     isa_portable::Rope,
                                     isa_portable::SiluMul, isa_portable::Accumulate,
                                     isa_portable::MergePartials,
                                     isa_portable::KeyScores};

}  // namespace apb::kernels
