// The CUDA backend: chooses kernels and launches them.
#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_graph.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/strided_copy.h"

namespace apb::kernels {
namespace {

using cuda::CudaStream;
using cuda::StatusOf;

class CudaBackend : public Backend {
 public:
  CudaBackend(const cudaDeviceProp& device, std::unique_ptr<cuda::CudaLinear> linear)
      : name_(absl::StrCat("cuda/sm_", device.major, device.minor, " ", device.name)),
        multiprocessors_(device.multiProcessorCount),
        is_hopper_(device.major == 9 && device.minor == 0),
        linear_(std::move(linear)) {}

  std::string_view name() const override { return name_; }
  Place place() const override { return Place::kDevice; }

  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, std::max<size_t>(size_bytes, 1));
    if (error != cudaSuccess) {
      cudaGetLastError();
      const absl::StatusOr<int64_t> left = FreeCudaBytes();
      return StatusOf(error, absl::StrCat("cannot allocate ", size_bytes, " bytes on the GPU (",
                                          left.value_or(0), " are free)")
                                 .c_str());
    }
    return Buffer(data, size_bytes, [](void* p) { cudaFree(p); });
  }

  absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) override {
    void* data = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&data, std::max<size_t>(size_bytes, 1), cudaHostAllocDefault);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return StatusOf(error,
                      absl::StrCat("cannot allocate ", size_bytes, " page-locked bytes").c_str());
    }
    return Buffer(data, size_bytes, [](void* p) { cudaFreeHost(p); });
  }

  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    absl::StatusOr<std::unique_ptr<CudaStream>> stream = CudaStream::Create();
    if (!stream.ok()) return stream.status();
    return *std::move(stream);
  }

  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream& stream,
                                                absl::FunctionRef<absl::Status()> work) override {
    return cuda::CudaGraph::Record(Of(stream), work);
  }

 private:
  static CudaStream& Of(Stream& stream) { return static_cast<CudaStream&>(stream); }

  void Do(Operation operation, Stream& stream) override {
    std::visit([&](const auto* args) { Do(*args, Of(stream)); }, operation);
  }
  // Most operations are one launch.
  template <typename Args>
  void Do(const Args& args, CudaStream& stream) {
    stream.Check(cuda::Enqueue(args, stream.handle()), Args::kName);
  }

  void Do(const CopyArgs& args, CudaStream& stream) {
    for (const cuda::CopyRun& run : cuda::CopyRuns(args.source, args.target)) {
      // A pitch is at most 2 GiB; a single piece has no such limit.
      stream.Check(run.rows == 1 ? cudaMemcpyAsync(run.target, run.source, run.width,
                                                   cudaMemcpyDefault, stream.handle())
                                 : cudaMemcpy2DAsync(run.target, run.target_pitch, run.source,
                                                     run.source_pitch, run.width, run.rows,
                                                     cudaMemcpyDefault, stream.handle()),
                   "Copy");
    }
  }

  void Do(const EmbeddingArgs& args, CudaStream& stream) {
    stream.Check(cuda::Embedding(args, stream.error_word(), stream.handle()), "Embedding");
  }

  void Do(const LinearArgs& args, CudaStream& stream) {
    if (args.x.shape[0] == 0) return;
    if (!IsBlockType(args.weight.dtype)) return linear_->Run(args, stream);
    stream.Fail(absl::UnimplementedError(
        "Linear: the CUDA backend does not multiply by quantized weights; the CPU backend does"));
  }

  void Do(const AttentionArgs& args, CudaStream& stream) {
    if (args.q.shape[0] == 0) return;
    if (args.keys.size() <= cuda::kMaxSegments) {
      AttendOnce(args, stream);
    } else {
      AttendInParts(args, stream);
    }
  }

  void Do(const PagedAttentionArgs& args, CudaStream& stream) {
    if (!cuda::MatrixPagedAttentionTakes(args)) {
      stream.Check(cuda::PlainPagedAttention(args, stream.handle()), "PagedAttention");
      return;
    }
    void* scratch = stream.Scratch(cuda::PagedScratchBytes(args, multiprocessors_));
    if (scratch == nullptr) return;
    stream.Check(cuda::MatrixPagedAttention(args, multiprocessors_, scratch, stream.handle()),
                 "PagedAttention");
  }

  void Do(const KeyScoreArgs& args, CudaStream& stream) {
    void* means = stream.Scratch(args.k.shape[1] * args.k.shape[2] * sizeof(float));
    if (means == nullptr) return;
    stream.Check(cuda::KeyScores(args, static_cast<float*>(means), stream.handle()), "KeyScores");
  }

  // For at most kMaxSegments segments and at least one row.
  void AttendOnce(const AttentionArgs& args, CudaStream& stream) {
    cuda::SegmentedArgs device = cuda::ToDevice(args);
    if (!cuda::MatrixAttentionTakes(args)) {
      stream.Check(cuda::PlainAttention(device, stream.handle()), "Attention");
      return;
    }
    const bool hopper = is_hopper_ && cuda::IsHopperHeadDim(args.q.shape[2]);
    const int tile_rows = hopper ? cuda::kHopperTileRows : cuda::kMatrixTileRows;
    const int tile_keys = hopper ? cuda::kHopperTileKeys : cuda::kMatrixTileKeys;
    void* scratch = stream.Scratch(cuda::PlanBytes(device, tile_rows, tile_keys));
    if (scratch == nullptr) return;
    stream.Check(cuda::PlanTiles(device, tile_rows, tile_keys, scratch, stream.handle()),
                 "Attention: plan");
    stream.Check(hopper ? cuda::HopperAttention(device, stream.handle())
                        : cuda::MatrixAttention(device, stream.handle()),
                 "Attention");
  }

  // For more segments than one launch takes: combines the partial results of several launches.
  void AttendInParts(const AttentionArgs& args, CudaStream& stream) {
    const int64_t rows = args.q.shape[0], heads = args.q.shape[1], d = args.q.shape[2];
    const int64_t count = static_cast<int64_t>(args.keys.size());
    const int64_t parts = (count + cuda::kMaxSegments - 1) / cuda::kMaxSegments;
    // Not the stream's scratch, which AttendOnce uses.
    void* memory = nullptr;
    stream.Check(
        cudaMallocAsync(&memory, parts * rows * heads * (d + 1) * sizeof(float), stream.handle()),
        "Attention: memory for parts");
    if (stream.failed()) return;
    const TensorView outs = TensorView::Contiguous(memory, DType::kF32, {parts, rows, heads, d});
    const TensorView lses =
        TensorView::Contiguous(outs.as<float>() + outs.numel(), DType::kF32, {parts, rows, heads});
    for (int64_t i = 0; i < parts; ++i) {
      AttentionArgs part = args;
      part.keys =
          args.keys.subspan(i * cuda::kMaxSegments,
                            std::min<int64_t>(cuda::kMaxSegments, count - i * cuda::kMaxSegments));
      part.out = TensorView::Contiguous(outs.as<float>() + i * outs.stride[0], DType::kF32,
                                        {rows, heads, d});
      part.lse =
          TensorView::Contiguous(lses.as<float>() + i * lses.stride[0], DType::kF32, {rows, heads});
      AttendOnce(part, stream);
    }
    stream.Check(cuda::Enqueue(MergePartialsArgs{outs, lses, args.out, args.lse}, stream.handle()),
                 "Attention: merge");
    stream.Check(cudaFreeAsync(memory, stream.handle()), "Attention: memory for parts");
  }

  const std::string name_;
  const int multiprocessors_;
  const bool is_hopper_;
  const std::unique_ptr<cuda::CudaLinear> linear_;
};

}  // namespace

absl::StatusOr<int> UsableCudaDevices() {
  int count = 0;
  const absl::Status status = StatusOf(cudaGetDeviceCount(&count), "no usable GPU");
  if (!status.ok()) {
    cudaGetLastError();
    return absl::UnavailableError(status.message());
  }
  if (count == 0) return absl::UnavailableError("no usable GPU: none is visible to this process");
  for (int i = 0; i < count; ++i) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
    if (major < 8) {
      return absl::UnavailableError(
          absl::StrCat("GPU ", i, " has compute capability ", major, ".x; 8.0 or later is needed"));
    }
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int device) {
  const absl::StatusOr<int> count = UsableCudaDevices();
  if (!count.ok()) return count.status();
  if (device < 0 || device >= *count) {
    return absl::InvalidArgumentError(
        absl::StrCat("GPU ", device, ": this process sees ", *count, " of them, numbered from 0"));
  }
  cudaDeviceProp properties{};
  absl::Status status = StatusOf(cudaSetDevice(device), "cudaSetDevice");
  if (status.ok())
    status = StatusOf(cudaGetDeviceProperties(&properties, device), "device properties");
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<cuda::CudaLinear>> linear = cuda::CudaLinear::Create();
  if (!linear.ok()) return linear.status();
  return std::make_unique<CudaBackend>(properties, *std::move(linear));
}

absl::StatusOr<int64_t> FreeCudaBytes() {
  size_t free = 0, total = 0;
  const absl::Status status = StatusOf(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  if (!status.ok()) return status;
  return static_cast<int64_t>(free);
}

}  // namespace apb::kernels
