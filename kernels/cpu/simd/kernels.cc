// The table of kernels of one instruction set.
#include "kernels/cpu/simd/kernels.h"

namespace apb::kernels::APB_ISA {

#if defined(__AVX512BF16__)
constexpr bool kLibraryProducts = true;
#else
constexpr bool kLibraryProducts = false;
#endif

#define APB_ENTRY(Args) .of_##Args = Run,
extern const IsaKernels kKernels = {APB_SIMD_OPERATIONS(APB_ENTRY)  //
                                        .rope = Rope,
                                    .linear = Linear, .packed_linear = PackedLinear,
                                    .library_products = kLibraryProducts};

}  // namespace apb::kernels::APB_ISA
