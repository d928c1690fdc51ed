// The kernels' host side: each function checks nothing (argument_checks.h has done that), launches
// on a stream and returns the launch's error. Views are of device memory. Shapes as in
// kernels/backend.h.
#pragma once

#include <cuda_runtime.h>

#include "kernels/backend.h"

namespace apb::kernels::cuda {

// elementwise.cu
// An id outside the table writes zeros and sets *error (memory that both sides see).
cudaError_t Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                      int32_t* error, cudaStream_t stream);
cudaError_t RmsNorm(const TensorView& x, const TensorView& weight, float epsilon,
                    const TensorView& out, cudaStream_t stream);
cudaError_t Rope(const RopeArgs& args, cudaStream_t stream);
cudaError_t SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
                    cudaStream_t stream);
cudaError_t Accumulate(const TensorView& x, const TensorView& out, cudaStream_t stream);
cudaError_t AccumulateRmsNorm(const TensorView& x, const TensorView& residual,
                              const TensorView& weight, float epsilon, const TensorView& out,
                              cudaStream_t stream);
// out[t] += bias, where a product cannot add it; out is f32 or of the bias's type.
cudaError_t AddBias(const TensorView& bias, const TensorView& out, cudaStream_t stream);
cudaError_t ReadFromCache(const TensorView& slots, const TensorView& k_cache,
                          const TensorView& v_cache, const TensorView& k, const TensorView& v,
                          cudaStream_t stream);
cudaError_t MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                          const TensorView& lse, cudaStream_t stream);

// select.cu
cudaError_t MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                        cudaStream_t stream);
// `means` is scratch: n_kv * d floats.
cudaError_t KeyScores(const KeyScoreArgs& args, float* means, cudaStream_t stream);
cudaError_t TopKPerHead(const TopKPerHeadArgs& args, cudaStream_t stream);
cudaError_t GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                              cudaStream_t stream);

// sample.cu
cudaError_t Sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace apb::kernels::cuda
