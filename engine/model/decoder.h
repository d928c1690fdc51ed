// THE layer loop: the same for prefill under every strategy, query pass and decode. Weights are
// read by reference (straight from the mapped checkpoint on a CPU). A matrix product may be divided
// among ranks: by tensor parallel shares for good, and by slices of those for rows that are the
// same on several ranks (docs/algorithms.md, "Decode").
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/core/tensor.h"
#include "engine/model/column_gather.h"
#include "engine/model/layer_attention.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::model {

// Seconds spent per phase since the start; the names of the metrics. On a device, up to date when
// the stream has been synchronized, and of calls with many rows only: to take the time of a few
// rows costs more than to compute them.
struct PhaseSeconds {
  double projection = 0;  // norms, QKV and output projections, RoPE
  double compress = 0;    // scores and selection (LayerAttention::BeforeRope)
  double attend = 0;      // LayerAttention::Attend, communication included
  double mlp = 0;
  double communicate = 0;  // between the ranks that a product is divided among
  double head = 0;         // final norm and logits
};

class Decoder {
 public:
  // Rows that the row-wise parts take at a time: enough to fill a device with a matrix product; on
  // a CPU, few enough for its cache.
  static constexpr int64_t kCpuRowChunk = 1024, kDeviceRowChunk = 4096;

  // All references must outlive the decoder. `tensor`: the ranks with the other tensor parallel
  // shares, in their order; null where `weights` are whole. Scratch for a few rows is allocated
  // here and does not move, so that decode steps can be recorded. For more rows it is allocated on
  // first use and kept; its size depends on the row chunk, not on the prompt, except for the packed
  // QKV and attention output of a call.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator* tensor = nullptr);

  // Lets calls be sliced: the ranks of `context`, which have the same tensor parallel share and run
  // the same rows, multiply by a slice of the weights each, so that each reads 1 / size of them.
  // `all`: the ranks of all slices of all shares, rank = context rank * shares + share.
  // kFailedPrecondition says why there can be none: more ranks than heads or columns to give them,
  // or borders within the blocks of quantized weights.
  absl::Status EnableSlices(comm::Communicator& context, comm::Communicator& all);

  // hidden [T, D] of the model's type; tokens [T] in host memory, each checked against the
  // vocabulary.
  absl::Status Embed(std::span<const int32_t> tokens, const kernels::TensorView& hidden,
                     kernels::Stream& stream);
  // The same of ids [T] i32 in the backend's memory, which nobody has checked.
  void Embed(const kernels::TensorView& ids, const kernels::TensorView& hidden,
             kernels::Stream& stream);
  absl::Status CheckTokens(std::span<const int32_t> tokens) const;

  // Runs layers [layer_begin, layer_end) in place on hidden [T, D]; positions [T] i32 (backend
  // memory). Row-wise parts run in chunks of rows, so MLP scratch does not grow with T. Where
  // attention.WantsOutput(layer) is false the layer ends after K and V are stored and hidden is
  // left undefined. On a device the work is enqueued only: the caller synchronizes. Sliced: hidden
  // is the same on all ranks of `context`; attention is given q, k, v of all heads and fills an
  // `out` of its own heads.
  absl::Status RunLayers(int layer_begin, int layer_end, const kernels::TensorView& hidden,
                         const kernels::TensorView& positions, LayerAttention& attention,
                         kernels::Stream& stream, bool sliced = false);

  // Final norm and output projection: hidden [R, D] -> logits [R, V] f32, on all ranks between
  // which the output projection is divided; all of them must call.
  absl::Status Logits(const kernels::TensorView& hidden, const kernels::TensorView& logits,
                      kernels::Stream& stream, bool sliced = false);

  // Gives back the memory that only long prompts need; call when a prefill has ended.
  void Trim();

  // As of a core::Workspace, of the memory that calls of a few rows use on all ranks alike. Logits
  // are no such calls: their memory moves when they are asked of more rows than before.
  int64_t row_memory_moves() const;

  const ModelConfig& config() const { return weights_.config(); }
  const PhaseSeconds& phase_seconds() const { return phase_seconds_; }

 private:
  // Who computes what in a call.
  struct Division {
    std::vector<LayerWeights> layers;  // this rank's part
    kernels::TensorView output;
    PartShape shape;
    comm::Communicator* sums = nullptr;    // between the ranks with the parts; null: no others
    std::unique_ptr<ColumnGather> qkv;     // null: the heads of this part are all that attend
    std::unique_ptr<ColumnGather> logits;  // null: the vocabulary is whole
  };

  struct Scratch {
    explicit Scratch(kernels::Backend& backend)
        : qkv(backend), attended(backend), normed(backend), gate_up(backend), sums(backend) {}
    core::Workspace qkv, attended;          // as long as the call's rows
    core::Workspace normed, gate_up, sums;  // one chunk of rows
  };

  Decoder(const Weights& weights, kernels::Backend& backend);
  absl::Status AllocateFew();
  Scratch& ScratchOf(int64_t rows) { return rows <= kFewRows ? few_ : many_; }
  static constexpr int64_t kTimedRows = 256;  // on a device
  static constexpr int64_t kFewRows = 256;

  absl::Status Project(const Division& division, int layer, const kernels::TensorView& hidden,
                       const kernels::TensorView& qkv, bool only_kv, kernels::Stream& stream);
  void RotateAndStore(const kernels::TensorView& qkv, const kernels::TensorView& positions,
                      bool only_kv, const LayerAttention::Store& store, kernels::Stream& stream);
  absl::Status OutputAndMlp(const Division& division, int layer,
                            const kernels::TensorView& attended, const kernels::TensorView& hidden,
                            kernels::Stream& stream);
  // rows += x * weight^T + bias, summed over the ranks of the division; then, if `normed` is
  // present, normed = the norm of rows. The time goes to `phase`, but for that of the sum.
  struct Product {
    kernels::TensorView x, weight, bias;
    kernels::TensorView norm, normed;
  };
  absl::Status AddProduct(const Division& division, const Product& product,
                          const kernels::TensorView& rows, double& phase, kernels::Stream& stream);

  const Weights& weights_;
  kernels::Backend& backend_;
  const int64_t row_chunk_;
  core::Tensor inv_freq_;
  float attention_factor_ = 1.0f;
  Division whole_;                    // between tensor parallel shares, if any
  std::unique_ptr<Division> sliced_;  // between all ranks
  Scratch few_, many_;                // for calls, or chunks, of at most kFewRows rows; of more
  core::Workspace ids_;
  PhaseSeconds phase_seconds_;
  bool timed_ = true;  // of the call under way
};

}  // namespace apb::model
