// The operations that only copy, compare or sample: one version for every CPU. The arguments have
// been checked.
#pragma once

#include "kernels/operations.h"

namespace apb::kernels {

// copy.cc
void OnCpu(const CopyArgs& args, int threads);
void OnCpu(const EmbeddingArgs& args, int threads);
void OnCpu(const GatherRowsPerHeadArgs& args, int threads);
// kv_cache.cc
void OnCpu(const ReadFromCacheArgs& args, int threads);
// Writes k and v [T, n_kv, d] to the slots [T] of the caches; -1 skips a row.
void AppendToCacheOnCpu(const TensorView& k, const TensorView& v, const TensorView& slots,
                        const TensorView& k_cache, const TensorView& v_cache, int threads);
// topk.cc
void OnCpu(const MaxPoolRowsArgs& args, int threads);
void OnCpu(const TopKPerHeadArgs& args, int threads);
// sample.cc: one thread for a row
void OnCpu(const SampleArgs& args, int threads);

}  // namespace apb::kernels
