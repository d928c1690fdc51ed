// THE layer loop: the same for prefill under every strategy, query pass and decode. Weights are
// read by reference (straight from the mapped checkpoint on a CPU).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/attention/layer_attention.h"
#include "engine/core/tensor.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::model {

// Seconds spent per phase since the start; the names of the metrics.
struct PhaseSeconds {
  double projection = 0;  // norms, QKV and output projections, RoPE
  double compress = 0;    // scores and selection (LayerAttention::BeforeRope)
  double attend = 0;      // LayerAttention::Attend, communication included
  double mlp = 0;
  double head = 0;  // final norm and logits
};

class Decoder {
 public:
  // `weights` and `backend` must outlive the decoder. Scratch is allocated on first use and kept;
  // its size depends on the row chunk, not on the prompt, except for the packed QKV and attention
  // output of a call.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Weights& weights,
                                                         kernels::Backend& backend);

  // hidden [T, D] of the model's type; tokens [T] in host memory, each checked against the
  // vocabulary.
  absl::Status Embed(std::span<const int32_t> tokens, const kernels::TensorView& hidden,
                     kernels::Stream& stream);

  // Runs layers [layer_begin, layer_end) in place on hidden [T, D]; positions [T] i32 (backend
  // memory). Row-wise parts run in chunks of rows, so MLP scratch does not grow with T. Where
  // attention.WantsOutput(layer) is false the layer ends after K and V are stored and hidden is
  // left undefined.
  absl::Status RunLayers(int layer_begin, int layer_end, const kernels::TensorView& hidden,
                         const kernels::TensorView& positions, attention::LayerAttention& attention,
                         kernels::Stream& stream);

  // Final norm and output projection: hidden [R, D] -> logits [R, V] f32.
  absl::Status Logits(const kernels::TensorView& hidden, const kernels::TensorView& logits,
                      kernels::Stream& stream);

  // Gives back the memory that only long prompts need; call when a prefill has ended.
  void Trim();

  const ModelConfig& config() const { return weights_.config(); }
  const PhaseSeconds& phase_seconds() const { return phase_seconds_; }

 private:
  Decoder(const Weights& weights, kernels::Backend& backend);
  // Rows that the row-wise parts take at a time: large enough for the matrix products, small enough
  // for the cache.
  static constexpr int64_t kRowChunk = 1024;

  absl::Status Project(const LayerWeights& layer, const kernels::TensorView& hidden,
                       const kernels::TensorView& qkv, bool only_kv, kernels::Stream& stream);
  void Rotate(const kernels::TensorView& qkv, const kernels::TensorView& positions, bool only_kv,
              kernels::Stream& stream);
  absl::Status OutputAndMlp(const LayerWeights& layer, const kernels::TensorView& attended,
                            const kernels::TensorView& hidden, kernels::Stream& stream);

  const Weights& weights_;
  kernels::Backend& backend_;
  core::Tensor inv_freq_;
  float attention_factor_ = 1.0f;
  core::Workspace qkv_, attended_;            // as long as the call's rows
  core::Workspace normed_, gate_, up_, ids_;  // one chunk of rows
  PhaseSeconds phase_seconds_;
};

}  // namespace apb::model
