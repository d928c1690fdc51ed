// The operations that are integer and copy work: one version for every CPU. Arguments have been
// checked.
#pragma once

#include "kernels/operations.h"

namespace apb::kernels {

// copy.cc
void OnCpu(const CopyArgs& args, int threads);
void OnCpu(const EmbeddingArgs& args, int threads);
void OnCpu(const GatherRowsPerHeadArgs& args, int threads);
// kv_cache.cc
void OnCpu(const ReadFromCacheArgs& args, int threads);
void AppendToCacheOnCpu(const TensorView& k, const TensorView& v, const TensorView& slots,
                        const TensorView& k_cache, const TensorView& v_cache, int threads);
// topk.cc
void OnCpu(const MaxPoolRowsArgs& args, int threads);
void OnCpu(const TopKPerHeadArgs& args, int threads);
// sample.cc: a thread for a row
void OnCpu(const SampleArgs& args, int threads);

}  // namespace apb::kernels
