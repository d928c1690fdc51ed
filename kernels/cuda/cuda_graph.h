// Recorded work of a CUDA stream, as a kernels::Graph.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::kernels::cuda {

class CudaGraph : public Graph {
 public:
  // See Backend::Record.
  static absl::StatusOr<std::unique_ptr<Graph>> Record(CudaStream& stream,
                                                       absl::FunctionRef<absl::Status()> work);
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }

  void Launch(Stream& stream) override;

 private:
  CudaGraph(cudaGraphExec_t graph, Recording recording)
      : graph_(graph), recording_(std::move(recording)) {}

  const cudaGraphExec_t graph_;
  const Recording recording_;
};

}  // namespace apb::kernels::cuda
