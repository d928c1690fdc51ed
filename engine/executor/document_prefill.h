// The prefill of a document, or of a batch of documents, on one rank. It runs layer by layer, so
// that the scheduler can put decode steps between slices of layers. Projections and MLP run over
// the tokens of all documents together. Destroying the object cancels the prefill; the KV that it
// has stored belongs to the SequenceKv of each document.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/cache/paged_kv_cache.h"
#include "engine/context_parallel/strategy.h"
#include "engine/model/decoder.h"
#include "engine/model/layer_attention.h"

namespace apb::executor {

// What a rank computes with. All references outlive the prefill.
struct PrefillDeps {
  model::Decoder& decoder;
  const model::Weights& weights;
  cache::PagedKvCache& cache;
  kernels::Backend& backend;
  comm::Communicator& communicator;      // cp_group
  comm::Communicator* tensor = nullptr;  // null without tensor parallelism
  bool overlap_passing = false;          // as in StrategyDeps; the same on all ranks
};

// One document of a prefill. `kv` outlives the prefill; the spans need not outlive Start.
struct PrefillDocument {
  // For the last plan.document_length() tokens. The tokens before them are a cached prefix, whose
  // KV may be spread over the `kv` of all ranks in any way.
  context_parallel::ShardPlan plan;
  std::span<const int32_t> tokens;          // the whole document
  std::span<const int32_t> embedded_query;  // for an anchor
  std::string_view compressor;              // empty if the plan passes nothing on
  cache::SequenceKv* kv = nullptr;
};

class DocumentPrefill : public model::LayerAttention {
 public:
  // All ranks call it together. Reserves cache slots for this rank's share of each document's new
  // tokens (kResourceExhausted if too few are free) and embeds its tokens. Several documents need
  // plans of one strategy that can batch. A cached prefix needs a strategy that can start from one,
  // and a host on every rank. kInvalidArgument: plans, tokens and group do not fit together, or a
  // token is outside the vocabulary. kFailedPrecondition: the checkpoint lacks retaining heads.
  // After an error, each `kv` may hold slots: release them.
  static absl::StatusOr<std::unique_ptr<DocumentPrefill>> Start(
      const PrefillDeps& deps, std::vector<PrefillDocument> documents, kernels::Stream& stream);

  // Runs layers [begin, end) for this rank's tokens (on a device, enqueues them). All ranks call it
  // with the same numbers.
  absl::Status RunLayers(int begin, int end, kernels::Stream& stream);

  // Stops storing K and V of the document with this `kv`, because its slots get another owner. The
  // other documents of the batch go on, and its own tokens run along unused.
  absl::Status Drop(const cache::SequenceKv& kv, kernels::Stream& stream);

  const context_parallel::ShardPlan& plan(size_t document = 0) const {
    return documents_[document].plan;
  }
  // Tokens that this rank computes, the anchor's included.
  int64_t rows() const { return hidden_.view().rows(); }
  // Seconds that the strategy spent in RunLayers on choosing the keys and values to pass on,
  // without BeforeRope.
  double compress_seconds() const { return strategy_->compress_seconds(); }
  // Hidden states [rows, hidden_size]: rows of the anchor, then of the documents. For tests.
  const kernels::TensorView& hidden() const { return hidden_.view(); }
  int64_t anchor_rows() const { return anchor_rows_; }
  const std::vector<context_parallel::HostRows>& hosts(size_t document = 0) const {
    return documents_[document].hosts;
  }
  // Also computes the output of the last layer, which nothing reads but tests of hidden states.
  void ComputeLastOutput() { last_output_ = true; }

  // model::LayerAttention:
  bool WantsPreRope(int layer) const override;
  absl::Status BeforeRope(int layer, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  Store StoreOf(int layer) const override;
  bool WantsOutput(int layer) const override;
  absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                      const kernels::TensorView& v, const kernels::TensorView& out,
                      kernels::Stream& stream) override;

 private:
  struct Document {
    context_parallel::ShardPlan plan;
    const cache::SequenceKv* kv = nullptr;
    std::vector<context_parallel::HostRows> hosts;  // those that this rank plays
  };
  // This rank's tokens: ids, positions, and the slots for K and V of all but the anchor's.
  struct Rows {
    std::vector<int32_t> tokens, positions;
    std::vector<int64_t> slots;
  };
  explicit DocumentPrefill(const PrefillDeps& deps) : deps_(deps) {}
  void AddAnchor(const PrefillDocument& document, Rows& rows);
  absl::Status AddDocument(PrefillDocument document, Rows& rows);
  absl::Status Embed(Rows rows, kernels::Stream& stream);
  context_parallel::LayerCall Call(int layer) const;

  PrefillDeps deps_;
  std::vector<Document> documents_;
  std::unique_ptr<context_parallel::ContextParallelStrategy> strategy_;
  core::Tensor hidden_, positions_, slots_;
  int64_t anchor_rows_ = 0;
  bool last_output_ = false;
};

}  // namespace apb::executor
