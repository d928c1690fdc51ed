#include "engine/model/decoder.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/rope_tables.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// Adds the time since construction to a counter. On a device backend this is the time to enqueue.
class PhaseTimer {
 public:
  explicit PhaseTimer(double& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  ~PhaseTimer() {
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

Decoder::Decoder(const Weights& weights, kernels::Backend& backend)
    : weights_(weights),
      backend_(backend),
      qkv_(backend),
      attended_(backend),
      normed_(backend),
      gate_(backend),
      up_(backend),
      ids_(backend) {}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const Weights& weights,
                                                         kernels::Backend& backend) {
  auto decoder = std::unique_ptr<Decoder>(new Decoder(weights, backend));
  const RopeTable table = MakeRopeTable(weights.config().rope, weights.config().head_dim);
  decoder->attention_factor_ = table.attention_factor;
  const int64_t half = static_cast<int64_t>(table.inv_freq.size());
  APB_ASSIGN_OR_RETURN(decoder->inv_freq_,
                       core::Tensor::CopyOf(backend, TensorView::Contiguous(
                                                         const_cast<float*>(table.inv_freq.data()),
                                                         DType::kF32, {half})));
  return decoder;
}

absl::Status Decoder::Embed(std::span<const int32_t> tokens, const TensorView& hidden,
                            kernels::Stream& stream) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config().vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", config().vocab_size));
    }
  }
  const int64_t count = static_cast<int64_t>(tokens.size());
  APB_ASSIGN_OR_RETURN(const TensorView ids, ids_.Get(DType::kI32, {count}));
  backend_.Copy(TensorView::Contiguous(const_cast<int32_t*>(tokens.data()), DType::kI32, {count}),
                ids, stream);
  backend_.Embedding(weights_.embedding(), ids, hidden, stream);
  return absl::OkStatus();
}

absl::Status Decoder::Project(const LayerWeights& layer, const TensorView& hidden,
                              const TensorView& qkv, bool only_kv, kernels::Stream& stream) {
  const ModelConfig& c = config();
  const int64_t q_width = c.query_heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  const float epsilon = static_cast<float>(c.rms_norm_epsilon);
  for (int64_t begin = 0; begin < hidden.rows(); begin += kRowChunk) {
    const int64_t end = std::min(begin + kRowChunk, hidden.rows());
    APB_ASSIGN_OR_RETURN(const TensorView normed,
                         normed_.Get(c.dtype, {end - begin, c.hidden_size}));
    backend_.RmsNorm(hidden.Rows(begin, end), layer.input_norm, epsilon, normed, stream);
    const TensorView rows = qkv.Rows(begin, end);
    if (!only_kv) {
      backend_.Linear({.x = normed,
                       .weight = layer.q_proj,
                       .bias = layer.q_bias,
                       .out = rows.Columns(0, q_width)},
                      stream);
    }
    backend_.Linear({.x = normed,
                     .weight = layer.k_proj,
                     .bias = layer.k_bias,
                     .out = rows.Columns(q_width, q_width + kv_width)},
                    stream);
    backend_.Linear({.x = normed,
                     .weight = layer.v_proj,
                     .bias = layer.v_bias,
                     .out = rows.Columns(q_width + kv_width, q_width + 2 * kv_width)},
                    stream);
    if (layer.q_norm.present()) {
      const TensorView k = rows.Columns(q_width, q_width + kv_width).SplitHeads(c.head_dim);
      backend_.RmsNorm(k, layer.k_norm, epsilon, k, stream);
      if (!only_kv) {
        const TensorView q = rows.Columns(0, q_width).SplitHeads(c.head_dim);
        backend_.RmsNorm(q, layer.q_norm, epsilon, q, stream);
      }
    }
  }
  return absl::OkStatus();
}

void Decoder::Rotate(const TensorView& qkv, const TensorView& positions, bool only_kv,
                     kernels::Stream& stream) {
  const ModelConfig& c = config();
  const int64_t q_width = c.query_heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  // q and k lie side by side and rotate alike.
  backend_.Rope({.x = qkv.Columns(only_kv ? q_width : 0, q_width + kv_width).SplitHeads(c.head_dim),
                 .positions = positions,
                 .inv_freq = inv_freq_.view(),
                 .attention_factor = attention_factor_},
                stream);
}

absl::Status Decoder::OutputAndMlp(const LayerWeights& layer, const TensorView& attended,
                                   const TensorView& hidden, kernels::Stream& stream) {
  const ModelConfig& c = config();
  for (int64_t begin = 0; begin < hidden.rows(); begin += kRowChunk) {
    const int64_t end = std::min(begin + kRowChunk, hidden.rows());
    const TensorView rows = hidden.Rows(begin, end);
    {
      PhaseTimer timer(phase_seconds_.projection);
      backend_.Linear({.x = attended.Rows(begin, end),
                       .weight = layer.o_proj,
                       .bias = layer.o_bias,
                       .out = rows,
                       .accumulate = true},
                      stream);
    }
    PhaseTimer timer(phase_seconds_.mlp);
    APB_ASSIGN_OR_RETURN(const TensorView normed,
                         normed_.Get(c.dtype, {end - begin, c.hidden_size}));
    APB_ASSIGN_OR_RETURN(const TensorView gate, gate_.Get(c.dtype, {end - begin, c.mlp_size}));
    APB_ASSIGN_OR_RETURN(const TensorView up, up_.Get(c.dtype, {end - begin, c.mlp_size}));
    backend_.RmsNorm(rows, layer.post_norm, static_cast<float>(c.rms_norm_epsilon), normed, stream);
    backend_.Linear({.x = normed, .weight = layer.gate_proj, .out = gate}, stream);
    backend_.Linear({.x = normed, .weight = layer.up_proj, .out = up}, stream);
    backend_.SiluMul(gate, up, gate, stream);
    backend_.Linear({.x = gate, .weight = layer.down_proj, .out = rows, .accumulate = true},
                    stream);
  }
  return absl::OkStatus();
}

absl::Status Decoder::RunLayers(int layer_begin, int layer_end, const TensorView& hidden,
                                const TensorView& positions, attention::LayerAttention& attention,
                                kernels::Stream& stream) {
  const ModelConfig& c = config();
  const int64_t rows = hidden.rows(), q_width = c.query_heads * c.head_dim,
                kv_width = c.kv_heads * c.head_dim;
  APB_ASSIGN_OR_RETURN(const TensorView qkv, qkv_.Get(c.dtype, {rows, c.qkv_width()}));
  APB_ASSIGN_OR_RETURN(const TensorView attended, attended_.Get(c.dtype, {rows, q_width}));
  for (int l = layer_begin; l < layer_end; ++l) {
    const LayerWeights& layer = weights_.layer(l);
    const bool wants_output = attention.WantsOutput(l), wants_qkv = attention.WantsPreRope(l);
    // Where nobody attends and nobody reads q, it need not be computed.
    const bool only_kv = !wants_output && !wants_qkv;
    {
      PhaseTimer timer(phase_seconds_.projection);
      APB_RETURN_IF_ERROR(Project(layer, hidden, qkv, only_kv, stream));
    }
    if (wants_qkv) {
      PhaseTimer timer(phase_seconds_.compress);
      APB_RETURN_IF_ERROR(attention.BeforeRope(l, qkv, stream));
    }
    {
      PhaseTimer timer(phase_seconds_.projection);
      Rotate(qkv, positions, only_kv, stream);
    }
    {
      PhaseTimer timer(phase_seconds_.attend);
      APB_RETURN_IF_ERROR(attention.Attend(
          l, qkv.Columns(0, q_width).SplitHeads(c.head_dim),
          qkv.Columns(q_width, q_width + kv_width).SplitHeads(c.head_dim),
          qkv.Columns(q_width + kv_width, q_width + 2 * kv_width).SplitHeads(c.head_dim),
          attended.SplitHeads(c.head_dim), stream));
    }
    if (wants_output) APB_RETURN_IF_ERROR(OutputAndMlp(layer, attended, hidden, stream));
  }
  return stream.Synchronize();
}

absl::Status Decoder::Logits(const TensorView& hidden, const TensorView& logits,
                             kernels::Stream& stream) {
  PhaseTimer timer(phase_seconds_.head);
  const ModelConfig& c = config();
  APB_ASSIGN_OR_RETURN(const TensorView normed,
                       normed_.Get(c.dtype, {hidden.rows(), c.hidden_size}));
  backend_.RmsNorm(hidden, weights_.final_norm(), static_cast<float>(c.rms_norm_epsilon), normed,
                   stream);
  backend_.Linear({.x = normed, .weight = weights_.output(), .out = logits}, stream);
  return absl::OkStatus();
}

void Decoder::Trim() {
  constexpr size_t kKeepBytes = 16 << 20;
  qkv_.Trim(kKeepBytes);
  attended_.Trim(kKeepBytes);
  ids_.Trim(kKeepBytes);
}

}  // namespace apb::model
