#include "engine/worker/calibration.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/core/tensor.h"

namespace apb::worker {
context_parallel::ModelShape ShapeOf(const model::Weights& weights) {
  const model::ModelConfig& config = weights.config();
  const model::LayerWeights& layer = weights.layer(0);
  return {.layers = config.layers,
          .hidden_size = config.hidden_size,
          .mlp_size = layer.gate_proj.shape[0],
          .query_heads = layer.q_proj.shape[0] / config.head_dim,
          .kv_heads = layer.k_proj.shape[0] / config.head_dim,
          .head_dim = config.head_dim,
          .retaining_width = weights.has_retaining_heads() ? layer.retaining_fc1.shape[0] : 0,
          .element_bytes = static_cast<int64_t>(kernels::SizeOf(config.dtype))};
}

namespace {

using kernels::DType;
using kernels::TensorView;

// The work of one run. It takes some milliseconds, so that on a busy machine some runs are not
// interrupted, and so that launches are a small part of it on a device.
struct Work {
  double product_flops, attention_flops;
  int64_t most_product_rows, most_attention_rows;
  int64_t large_message;
};
constexpr Work kCpuWork = {5e9, 5e9, 2048, 4096, 4 << 20};
constexpr Work kDeviceWork = {2e12, 1e12, 4096, 16384, 64 << 20};
constexpr int64_t kSmallMessage = 64 << 10;

const Work& WorkFor(const kernels::Backend& backend) {
  return backend.place() == kernels::Place::kCpu ? kCpuWork : kDeviceWork;
}

// Kernels take as long on zeros as on other numbers.
absl::StatusOr<core::Tensor> Zeros(kernels::Backend& backend, DType dtype,
                                   std::initializer_list<int64_t> shape) {
  const int64_t count =
      std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  std::vector<std::byte> zeros(count * kernels::SizeOf(dtype));
  TensorView view = TensorView::Contiguous(zeros.data(), dtype, shape);
  return core::Tensor::CopyOf(backend, view);
}

// The fastest of several runs after a first one, which pays for page faults. If the work is slow,
// the first run counts too.
absl::StatusOr<double> BestSeconds(kernels::Stream& stream,
                                   const std::function<absl::Status()>& work) {
  constexpr absl::Duration kPatience = absl::Milliseconds(100);
  constexpr int kRuns = 10;
  double best = std::numeric_limits<double>::infinity();
  const absl::Time begin = absl::Now();
  for (int i = 0; i <= kRuns && (i == 0 || absl::Now() - begin < kPatience); ++i) {
    const absl::Time start = absl::Now();
    APB_RETURN_IF_ERROR(work());
    APB_RETURN_IF_ERROR(stream.Synchronize());
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - start));
  }
  return best;
}

// Floating-point operations per second of all matrix products of a layer.
absl::StatusOr<double> ProductFlops(const model::Weights& weights, kernels::Backend& backend,
                                    kernels::Stream& stream) {
  const model::LayerWeights& layer = weights.layer(0);
  const TensorView products[] = {layer.q_proj,    layer.k_proj,  layer.v_proj,   layer.o_proj,
                                 layer.gate_proj, layer.up_proj, layer.down_proj};
  int64_t parameters = 0, widest = 0;
  for (const TensorView& weight : products) {
    parameters += weight.numel();
    widest = std::max({widest, weight.shape[0], weight.shape[1]});
  }
  const double row_flops = 2.0 * static_cast<double>(parameters);
  const Work& work = WorkFor(backend);
  const int64_t rows = std::clamp<int64_t>(static_cast<int64_t>(work.product_flops / row_flops), 32,
                                           work.most_product_rows);
  const DType dtype = weights.config().dtype;
  APB_ASSIGN_OR_RETURN(const core::Tensor in, Zeros(backend, dtype, {rows, widest}));
  APB_ASSIGN_OR_RETURN(const core::Tensor out,
                       core::Tensor::Create(backend, dtype, {rows, widest}));
  APB_ASSIGN_OR_RETURN(const double seconds, BestSeconds(stream, [&] {
                         for (const TensorView& weight : products) {
                           backend.Linear({.x = in.view().Columns(0, weight.shape[1]),
                                           .weight = weight,
                                           .out = out.view().Columns(0, weight.shape[0])},
                                          stream);
                         }
                         return absl::OkStatus();
                       }));
  return static_cast<double>(rows) * row_flops / seconds;
}

// Floating-point operations per second of causal attention over a short text.
absl::StatusOr<double> AttentionFlops(const model::Weights& weights, kernels::Backend& backend,
                                      kernels::Stream& stream) {
  const context_parallel::ModelShape shape = ShapeOf(weights);
  const DType dtype = weights.config().dtype;
  const double pair_flops = 4.0 * static_cast<double>(shape.query_heads * shape.head_dim);
  const Work& work = WorkFor(backend);
  const int64_t rows =
      std::clamp<int64_t>(static_cast<int64_t>(std::sqrt(2 * work.attention_flops / pair_flops)),
                          256, work.most_attention_rows);
  std::vector<int32_t> numbers(rows);
  std::iota(numbers.begin(), numbers.end(), 0);
  APB_ASSIGN_OR_RETURN(
      const core::Tensor positions,
      core::Tensor::CopyOf(backend, TensorView::Contiguous(numbers.data(), DType::kI32, {rows})));
  APB_ASSIGN_OR_RETURN(const core::Tensor q,
                       Zeros(backend, dtype, {rows, shape.query_heads, shape.head_dim}));
  APB_ASSIGN_OR_RETURN(const core::Tensor k,
                       Zeros(backend, dtype, {rows, shape.kv_heads, shape.head_dim}));
  APB_ASSIGN_OR_RETURN(
      const core::Tensor out,
      core::Tensor::Create(backend, dtype, {rows, shape.query_heads, shape.head_dim}));
  const kernels::KeySegment keys{.k = k.view(), .v = k.view(), .positions = positions.view()};
  APB_ASSIGN_OR_RETURN(const double seconds, BestSeconds(stream, [&] {
                         backend.Attention({.q = q.view(),
                                            .q_positions = positions.view(),
                                            .keys = {&keys, 1},
                                            .scale = 1,
                                            .out = out.view()},
                                           stream);
                         return absl::OkStatus();
                       }));
  const double n = static_cast<double>(rows);
  return n * (n + 1) / 2 * pair_flops / seconds;
}

// Seconds of one step of the ring with messages of `bytes` bytes. All ranks make the same calls.
absl::StatusOr<double> StepSeconds(int64_t bytes, int runs, kernels::Backend& backend,
                                   comm::Communicator& communicator, kernels::Stream& stream) {
  const int ranks = communicator.size(), rank = communicator.rank();
  APB_ASSIGN_OR_RETURN(const core::Tensor send, Zeros(backend, DType::kF32, {bytes / 4}));
  APB_ASSIGN_OR_RETURN(const core::Tensor recv,
                       core::Tensor::Create(backend, DType::kF32, {bytes / 4}));
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < runs; ++i) {
    APB_RETURN_IF_ERROR(communicator.Barrier());
    const absl::Time start = absl::Now();
    APB_RETURN_IF_ERROR(communicator.SendRecv(send.view(), (rank + 1) % ranks, recv.view(),
                                              (rank + ranks - 1) % ranks, stream));
    APB_RETURN_IF_ERROR(stream.Synchronize());
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - start));
  }
  return best;
}

}  // namespace

absl::StatusOr<context_parallel::MachineSpeed> Calibrate(const model::Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator& communicator) {
  APB_ASSIGN_OR_RETURN(auto stream, backend.NewStream());
  context_parallel::MachineSpeed speed;
  APB_ASSIGN_OR_RETURN(speed.product_flops, ProductFlops(weights, backend, *stream));
  APB_ASSIGN_OR_RETURN(speed.attention_flops, AttentionFlops(weights, backend, *stream));
  if (communicator.size() == 1) return speed;
  APB_ASSIGN_OR_RETURN(const double small,
                       StepSeconds(kSmallMessage, 10, backend, communicator, *stream));
  const int64_t large_message = WorkFor(backend).large_message;
  APB_ASSIGN_OR_RETURN(const double large,
                       StepSeconds(large_message, 4, backend, communicator, *stream));
  // Nanoseconds per 1e6 operations, and per message: f32 is exact enough for these.
  std::array<float, 4> slowest = {static_cast<float>(1e15 / speed.product_flops),
                                  static_cast<float>(1e15 / speed.attention_flops),
                                  static_cast<float>(small * 1e9), static_cast<float>(large * 1e9)};
  const TensorView numbers = TensorView::Contiguous(slowest.data(), DType::kF32, {4});
  APB_ASSIGN_OR_RETURN(const core::Tensor agreed, core::Tensor::CopyOf(backend, numbers));
  APB_RETURN_IF_ERROR(communicator.AllReduce(agreed.view(), comm::ReduceOp::kMax, *stream));
  backend.Copy(agreed.view(), numbers, *stream);
  APB_RETURN_IF_ERROR(stream->Synchronize());
  speed.product_flops = 1e15 / slowest[0];
  speed.attention_flops = 1e15 / slowest[1];
  // The model time = latency + bytes / speed, through both points. No link is faster than memory.
  const double small_seconds = slowest[2] * 1e-9, large_seconds = slowest[3] * 1e-9;
  const double per_byte = std::max(
      1e-12, (large_seconds - small_seconds) / static_cast<double>(large_message - kSmallMessage));
  speed.link_bytes_per_second = 1 / per_byte;
  speed.link_latency_seconds =
      std::max(1e-7, small_seconds - static_cast<double>(kSmallMessage) * per_byte);
  return speed;
}

}  // namespace apb::worker
