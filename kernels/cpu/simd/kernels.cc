// The table of one instruction set.
#include "kernels/cpu/simd/kernels.h"

namespace apb::kernels::APB_ISA {

#if defined(__AVX512BF16__)
constexpr bool kLibraryProducts = true;
#else
constexpr bool kLibraryProducts = false;
#endif

extern const IsaKernels kKernels = {.attention = Attention,
                                    .paged_attention = PagedAttention,
                                    .linear = Linear,
                                    .packed_linear = PackedLinear,
                                    .library_products = kLibraryProducts,
                                    .rms_norm = RmsNorm,
                                    .rope = Rope,
                                    .silu_mul = SiluMul,
                                    .accumulate = Accumulate,
                                    .merge_partials = MergePartials,
                                    .key_scores = KeyScores};

}  // namespace apb::kernels::APB_ISA
