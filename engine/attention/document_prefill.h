// The prefill of one document on one rank, layer by layer, so that the scheduler can put decode
// steps between slices of layers. Destroying the object cancels it; the KV it stored belongs to the
// SequenceKv.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/attention/layer_attention.h"
#include "engine/attention/strategy.h"
#include "engine/cache/paged_kv_cache.h"
#include "engine/model/decoder.h"

namespace apb::attention {

// What a rank has for computing; everything outlives the prefill.
struct PrefillContext {
  model::Decoder& decoder;
  const model::Weights& weights;
  cache::PagedKvCache& cache;
  kernels::Backend& backend;
  parallel::Communicator& communicator;      // the context group
  parallel::Communicator* tensor = nullptr;  // the tensor parallel group, if there is one
};

class DocumentPrefill : public LayerAttention {
 public:
  // `document` and `embedded_query` are token ids; `compressor` is empty where the plan passes
  // nothing on. Reserves cache slots for this rank's share in `kv` (kResourceExhausted if they are
  // not there) and embeds its rows. kInvalidArgument: plan, tokens and group do not fit together,
  // or a token is outside the vocabulary; kFailedPrecondition: the checkpoint lacks retaining
  // heads. After an error `kv` may hold slots: Release it.
  static absl::StatusOr<std::unique_ptr<DocumentPrefill>> Start(
      const PrefillContext& context, ShardPlan plan, std::string_view compressor,
      std::span<const int32_t> document, std::span<const int32_t> embedded_query,
      cache::SequenceKv& kv, kernels::Stream& stream);

  // Runs layers [begin, end) for this rank's rows. All ranks call it with the same numbers.
  absl::Status RunLayers(int begin, int end, kernels::Stream& stream);

  const ShardPlan& plan() const { return plan_; }
  int64_t rows() const { return hidden_.view().rows(); }
  // Seconds of RunLayers that went into choosing what is passed on, but for BeforeRope.
  double compress_seconds() const { return strategy_->compress_seconds(); }
  // Hidden states [rows, D] and, by row, the document token (or -1 - i for embedded query token i);
  // for tests.
  const kernels::TensorView& hidden() const { return hidden_.view(); }
  int64_t anchor_rows() const { return anchor_rows_; }
  const std::vector<HostRows>& hosts() const { return hosts_; }
  // For tests of hidden states: the last layer computes its output too (nothing else reads it).
  void ComputeLastOutput() { last_output_ = true; }

  // LayerAttention:
  bool WantsPreRope(int layer) const override;
  absl::Status BeforeRope(int layer, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  bool WantsOutput(int layer) const override;
  absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                      const kernels::TensorView& v, const kernels::TensorView& out,
                      kernels::Stream& stream) override;

 private:
  explicit DocumentPrefill(const PrefillContext& context) : context_(context) {}
  LayerCall Call(int layer) const;

  PrefillContext context_;
  ShardPlan plan_;
  std::unique_ptr<ContextParallelStrategy> strategy_;
  core::Tensor hidden_, positions_, slots_;
  int64_t anchor_rows_ = 0;
  std::vector<HostRows> hosts_;
  bool last_output_ = false;
};

}  // namespace apb::attention
