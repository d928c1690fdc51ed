// Selection of the tokens to pass on, gathers and cache writes: integer and copy work, the same on
// every CPU.
#pragma once

#include "kernels/backend.h"

namespace apb::kernels {

void EmbeddingOnCpu(const TensorView& table, const TensorView& ids, const TensorView& out,
                    int threads);
void AppendToCacheOnCpu(const TensorView& k, const TensorView& v, const TensorView& slots,
                        const TensorView& k_cache, const TensorView& v_cache, int threads);
void ReadFromCacheOnCpu(const TensorView& slots, const TensorView& k_cache,
                        const TensorView& v_cache, const TensorView& k, const TensorView& v,
                        int threads);
void MaxPoolRowsOnCpu(const TensorView& scores, int window, const TensorView& out, int threads);
void TopKPerHeadOnCpu(const TopKPerHeadArgs& args, int threads);
void GatherRowsPerHeadOnCpu(const TensorView& x, const TensorView& indices, const TensorView& out,
                            int threads);
void CopyOnCpu(const TensorView& source, const TensorView& target, int threads);

}  // namespace apb::kernels
