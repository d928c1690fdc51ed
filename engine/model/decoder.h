// THE layer loop: the same for prefill under every strategy, query pass and decode. Weights are not
// copied; on a CPU they are read straight from the mapped checkpoint. Ranks may divide a matrix
// product: by tensor parallel shares in all calls, and by slices of these shares in calls whose
// rows are the same on several ranks (docs/algorithms.md, "Decode").
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

// Seconds per phase since the start. The fields have the metrics' names. On a device, they are up
// to date after the stream has been synchronized, and count only calls with many rows, because
// timing a few rows costs more than computing them.
struct PhaseSeconds {
  double projection = 0;  // norms, QKV and output projections, RoPE
  double compress = 0;    // scores and selection (LayerAttention::BeforeRope)
  double attend = 0;      // LayerAttention::Attend, communication included
  double mlp = 0;
  double communicate = 0;  // between the ranks that divide a product
  double head = 0;         // final norm and logits
};

class Decoder {
 public:
  // Rows that the row-wise parts compute at a time: on a device enough for one matrix product to
  // fill it, on a CPU few enough for its cache.
  static constexpr int64_t kCpuRowChunk = 1024, kDeviceRowChunk = 4096;

  // All references must outlive the decoder. `tensor` is the tensor group, rank = share; null if
  // `weights` are whole. Workspaces for a few rows are allocated here and do not move, so that
  // decode steps can be recorded. Workspaces for more rows are allocated on first use and kept.
  // Their size depends on the row chunk, not on the prompt, except for a call's packed QKV and
  // attention output.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator* tensor = nullptr);

  // Allows sliced calls. In a sliced call, the ranks of `context`, which have the same tensor
  // parallel share and run the same rows, each multiply by a slice of the weights, so that each
  // reads 1 / size of them. `all` connects the ranks of all slices of all shares, rank = context
  // rank * shares + share. kFailedPrecondition (the message says why) if the weights cannot be
  // sliced: there are more ranks than heads or columns, or a slice would cut a block of quantized
  // weights.
  absl::Status EnableSlices(comm::Communicator& context, comm::Communicator& all);

  // Fills hidden [T, D], of the model's type, with the embeddings of tokens [T], which are in CPU
  // memory. kInvalidArgument for a token outside the vocabulary.
  absl::Status Embed(std::span<const int32_t> tokens, const kernels::TensorView& hidden,
                     kernels::Stream& stream);
  // The same for ids [T] i32 in the backend's memory. They are not checked.
  void Embed(const kernels::TensorView& ids, const kernels::TensorView& hidden,
             kernels::Stream& stream);
  // kInvalidArgument for a token outside the vocabulary.
  absl::Status CheckTokens(std::span<const int32_t> tokens) const;

  // Runs layers [layer_begin, layer_end) in place on hidden [T, D], with positions [T] i32; both in
  // the backend's memory. Row-wise parts run in chunks of rows, so the MLP's workspace does not
  // grow with T. If attention.WantsOutput(layer) is false, the layer ends after K and V are stored,
  // and hidden is undefined. On a device the work is only enqueued; the caller synchronizes. In a
  // sliced call, hidden is the same on all ranks of `context`; attention gets q, k, v of all heads
  // and an `out` of this slice's heads.
  absl::Status RunLayers(int layer_begin, int layer_end, const kernels::TensorView& hidden,
                         const kernels::TensorView& positions, LayerAttention& attention,
                         kernels::Stream& stream, bool sliced = false);

  // Final norm and output projection: hidden [R, D] -> logits [R, V] f32. All ranks that divide the
  // output projection must call it; each gets all logits.
  absl::Status Logits(const kernels::TensorView& hidden, const kernels::TensorView& logits,
                      kernels::Stream& stream, bool sliced = false);

  // Frees the memory that only long prompts need. To be called after a prefill.
  void Trim();

  // As core::Workspace::moves, for the memory that RunLayers uses for a few rows, on all ranks
  // alike. The memory of Logits does not count: it moves when a call has more rows than all before.
  int64_t row_memory_moves() const;

  const ModelConfig& config() const { return weights_.config(); }
  const PhaseSeconds& phase_seconds() const { return phase_seconds_; }

 private:
  // How the ranks divide the products of a call.
  struct Division {
    std::vector<LayerWeights> layers;  // this rank's part
    kernels::TensorView output;
    PartShape shape;
    comm::Communicator* sums = nullptr;    // the ranks that have the parts; null if undivided
    std::unique_ptr<ColumnGather> qkv;     // null if attention only needs this part's heads
    std::unique_ptr<ColumnGather> logits;  // null if this rank has the whole vocabulary
  };

  struct Scratch {
    explicit Scratch(kernels::Backend& backend)
        : qkv(backend), attended(backend), normed(backend), gate_up(backend), sums(backend) {}
    core::Workspace qkv, attended;          // of all rows of a call
    core::Workspace normed, gate_up, sums;  // of one chunk of rows
  };

  Decoder(const Weights& weights, kernels::Backend& backend);
  absl::Status AllocateFew();
  Scratch& ScratchOf(int64_t rows) { return rows <= kFewRows ? few_ : many_; }
  static constexpr int64_t kTimedRows = 256;  // the fewest rows that are timed on a device
  static constexpr int64_t kFewRows = 256;    // the most rows for which few_ is used

  absl::Status Project(const Division& division, int layer, const kernels::TensorView& hidden,
                       const kernels::TensorView& qkv, bool only_kv, kernels::Stream& stream);
  void RotateAndStore(const kernels::TensorView& qkv, const kernels::TensorView& positions,
                      bool only_kv, const LayerAttention::Store& store, kernels::Stream& stream);
  absl::Status OutputAndMlp(const Division& division, int layer,
                            const kernels::TensorView& attended, const kernels::TensorView& hidden,
                            kernels::Stream& stream);
  // rows += x * weight^T + bias, summed over the ranks of the division. Then, if `normed` is
  // present, normed = RMSNorm(rows) with weight `norm`. The time counts as `phase`, except for the
  // sum over ranks.
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
  Division whole_;                    // by tensor parallel shares, if there are any
  std::unique_ptr<Division> sliced_;  // by slices of the shares; null before EnableSlices
  Scratch few_, many_;                // for calls or chunks of up to kFewRows rows, and of more
  core::Workspace ids_;
  PhaseSeconds phase_seconds_;
  bool timed_ = true;  // whether the current call is timed
};

}  // namespace apb::model
