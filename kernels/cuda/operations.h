// The kernels' host side: each function checks nothing (Backend::Run has done that), launches on a
// stream and returns the launch's error. Views are of device memory. Shapes as in
// kernels/operations.h. What is called Enqueue is all that its operation needs.
#pragma once

#include <cuda_runtime.h>

#include "kernels/operations.h"

namespace apb::kernels::cuda {

// elementwise.cu
cudaError_t Enqueue(const RmsNormArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const RopeArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const SiluMulArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const AccumulateArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const AccumulateRmsNormArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const ReadFromCacheArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const MergePartialsArgs& args, cudaStream_t stream);
// An id outside the table writes zeros and sets *error (memory that both sides see).
cudaError_t Embedding(const EmbeddingArgs& args, int32_t* error, cudaStream_t stream);
// out[t] += bias, where a product cannot add it; out is f32 or of the bias's type.
cudaError_t AddBias(const TensorView& bias, const TensorView& out, cudaStream_t stream);

// topk.cu
cudaError_t Enqueue(const MaxPoolRowsArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const TopKPerHeadArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const GatherRowsPerHeadArgs& args, cudaStream_t stream);
// `means` is scratch: n_kv * d floats.
cudaError_t KeyScores(const KeyScoreArgs& args, float* means, cudaStream_t stream);

// sample.cu
cudaError_t Enqueue(const SampleArgs& args, cudaStream_t stream);

}  // namespace apb::kernels::cuda
