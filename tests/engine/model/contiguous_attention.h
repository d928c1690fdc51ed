// Attention of one sequence on the CPU, and a whole model's logits with it, for tests and
// measurements of the decoder.
#pragma once

#include <cmath>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/model/decoder.h"

namespace apb::model {

// Plain causal attention over all tokens so far. RunLayers runs the tokens of the last NextRows.
class ContiguousAttention : public model::LayerAttention {
 public:
  ContiguousAttention(const ModelConfig& config, kernels::Backend& backend)
      : config_(config), backend_(backend), keys_(config.layers), values_(config.layers) {}
  void NextRows(int64_t begin, int64_t count) {
    begin_ = begin;
    positions_.resize(begin + count);
    for (int64_t i = 0; i < begin + count; ++i) positions_[i] = static_cast<int32_t>(i);
  }
  kernels::TensorView positions() {
    return kernels::TensorView::Contiguous(positions_.data() + begin_, kernels::DType::kI32,
                                           {static_cast<int64_t>(positions_.size()) - begin_});
  }
  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(int, const kernels::TensorView&, kernels::Stream&) override {
    return absl::InternalError("not wanted");
  }
  Store StoreOf(int) const override { return {}; }
  bool WantsOutput(int) const override { return true; }
  absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                      const kernels::TensorView& v, const kernels::TensorView& out,
                      kernels::Stream& stream) override {
    const int64_t total = static_cast<int64_t>(positions_.size());
    const auto append = [&](std::vector<std::byte>& store, const kernels::TensorView& rows) {
      const size_t row = config_.kv_heads * config_.head_dim * SizeOf(config_.dtype);
      store.resize(total * row);
      kernels::TensorView all = kernels::TensorView::Contiguous(
          store.data(), config_.dtype, {total, config_.kv_heads, config_.head_dim});
      backend_.Copy(rows, all.Rows(begin_, total), stream);
      return all;
    };
    kernels::KeySegment segment{.k = append(keys_[layer], k),
                                .v = append(values_[layer], v),
                                .positions = kernels::TensorView::Contiguous(
                                    positions_.data(), kernels::DType::kI32, {total})};
    backend_.Attention({.q = q,
                        .q_positions = positions(),
                        .keys = {&segment, 1},
                        .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                        .out = out},
                       stream);
    return absl::OkStatus();
  }

 private:
  const ModelConfig& config_;
  kernels::Backend& backend_;
  std::vector<std::vector<std::byte>> keys_, values_;
  std::vector<int32_t> positions_;
  int64_t begin_ = 0;
};

// Logits of a prompt, [tokens, V] row-major.
inline absl::StatusOr<std::vector<float>> LogitsOf(const Weights& weights,
                                                   kernels::Backend& backend,
                                                   const std::vector<int32_t>& tokens) {
  const ModelConfig& config = weights.config();
  const auto rows = static_cast<int64_t>(tokens.size());
  APB_ASSIGN_OR_RETURN(const auto decoder, Decoder::Create(weights, backend));
  APB_ASSIGN_OR_RETURN(const auto stream, backend.NewStream());
  ContiguousAttention attention(config, backend);
  attention.NextRows(0, rows);
  APB_ASSIGN_OR_RETURN(const core::Tensor hidden,
                       core::Tensor::Create(backend, config.dtype, {rows, config.hidden_size}));
  std::vector<float> logits(rows * config.vocab_size);
  const auto view = kernels::TensorView::Contiguous(logits.data(), kernels::DType::kF32,
                                                    {rows, config.vocab_size});
  APB_RETURN_IF_ERROR(decoder->Embed(tokens, hidden.view(), *stream));
  APB_RETURN_IF_ERROR(decoder->RunLayers(0, config.layers, hidden.view(), attention.positions(),
                                         attention, *stream));
  APB_RETURN_IF_ERROR(decoder->Logits(hidden.view(), view, *stream));
  APB_RETURN_IF_ERROR(stream->Synchronize());
  return logits;
}

}  // namespace apb::model
