// The kernels' CPU side. Each function launches on a stream and returns the launch's error. It
// checks nothing, because Backend::Run has checked the arguments. Views are of device memory, with
// shapes as in kernels/operations.h. Enqueue functions do all of their operation.
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
// An id outside the table writes zeros and sets *error, which is mapped CPU memory.
cudaError_t Embedding(const EmbeddingArgs& args, int32_t* error, cudaStream_t stream);
// out[t] += bias, for products that cannot add it. out has the bias's type or f32.
cudaError_t AddBias(const TensorView& bias, const TensorView& out, cudaStream_t stream);

// topk.cu
cudaError_t Enqueue(const MaxPoolRowsArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const TopKPerHeadArgs& args, cudaStream_t stream);
cudaError_t Enqueue(const GatherRowsPerHeadArgs& args, cudaStream_t stream);
// `means` is scratch of n_kv * d floats.
cudaError_t KeyScores(const KeyScoreArgs& args, float* means, cudaStream_t stream);

// sample.cu
cudaError_t Enqueue(const SampleArgs& args, cudaStream_t stream);

}  // namespace apb::kernels::cuda
