// Recording by stream capture.
#include "kernels/cuda/cuda_graph.h"

namespace apb::kernels::cuda {

absl::StatusOr<std::unique_ptr<Graph>> CudaGraph::Record(CudaStream& stream,
                                                         absl::FunctionRef<absl::Status()> work) {
  if (stream.failed()) return stream.Synchronize();
  // Relaxed, because other threads may use the device meanwhile (the watchdog of collectives
  // queries events, NCCL launches from threads of its own), and libraries may load kernels and
  // allocate.
  absl::Status status = StatusOf(
      cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeRelaxed), "begin of a graph");
  if (!status.ok()) {
    cudaGetLastError();
    return status;
  }
  stream.BeginRecording();
  status = work();
  cudaGraph_t graph = nullptr;
  // Also ends a recording that an error has invalidated, so that the stream can be used again.
  const cudaError_t ended = cudaStreamEndCapture(stream.handle(), &graph);
  absl::StatusOr<Recording> recording = stream.EndRecording();
  if (status.ok()) status = recording.status();
  if (status.ok()) status = StatusOf(ended, "end of a graph");
  cudaGraphExec_t executable = nullptr;
  if (status.ok()) status = StatusOf(cudaGraphInstantiate(&executable, graph, 0), "graph");
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!status.ok()) {
    cudaGetLastError();
    return status;
  }
  return std::unique_ptr<Graph>(new CudaGraph(executable, *std::move(recording)));
}

void CudaGraph::Launch(Stream& stream) {
  auto& on = static_cast<CudaStream&>(stream);
  if (on.failed()) return;
  for (const auto& [owner, participant] : recording_.participants) participant->BeforeLaunch(on);
  if (on.failed()) return;
  on.Check(cudaGraphLaunch(graph_, on.handle()), "graph");
  for (const auto& [owner, participant] : recording_.participants) participant->AfterLaunch(on);
}

}  // namespace apb::kernels::cuda
