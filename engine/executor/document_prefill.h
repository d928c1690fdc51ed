// The prefill of a document, or of a batch of them, on one rank, layer by layer, so that the
// scheduler can put decode steps between slices of layers. Projections and MLP run over the rows of
// all documents together. Destroying the object cancels it; the KV it stored belongs to the
// SequenceKv of each document.
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

// What a rank has for computing; everything outlives the prefill.
struct PrefillDeps {
  model::Decoder& decoder;
  const model::Weights& weights;
  cache::PagedKvCache& cache;
  kernels::Backend& backend;
  comm::Communicator& communicator;      // the context group
  comm::Communicator* tensor = nullptr;  // the tensor parallel group, if there is one
  bool overlap_passing = false;          // StrategyDeps; the same on all ranks
};

// One document of a prefill; `kv` outlives it, the spans need not outlive Start.
struct PrefillDocument {
  // For the last plan.document_length() tokens: what comes before is a cached prefix, whose KV is
  // spread over the `kv` of all ranks in any way.
  context_parallel::ShardPlan plan;
  std::span<const int32_t> tokens;          // the whole document
  std::span<const int32_t> embedded_query;  // for an anchor
  std::string_view compressor;              // empty where the plan passes nothing on
  cache::SequenceKv* kv = nullptr;
};

class DocumentPrefill : public model::LayerAttention {
 public:
  // All ranks call it together. Reserves cache slots for this rank's share of each document's new
  // tokens (kResourceExhausted if they are not there) and embeds its rows. Several documents
  // only with plans of one strategy that can batch; cached prefixes only where the strategy can
  // start from one and every rank has a host. kInvalidArgument: plans, tokens and group do not fit
  // together, or a token is outside the vocabulary; kFailedPrecondition: the checkpoint lacks
  // retaining heads. After an error the `kv` may hold slots: Release them.
  static absl::StatusOr<std::unique_ptr<DocumentPrefill>> Start(
      const PrefillDeps& deps, std::vector<PrefillDocument> documents, kernels::Stream& stream);

  // Runs layers [begin, end) for this rank's rows; on a device, enqueues them. All ranks call it
  // with the same numbers.
  absl::Status RunLayers(int begin, int end, kernels::Stream& stream);

  // This document's slots have another owner from now on: nothing is stored in them any more. The
  // other documents of the batch go on (its rows too, for nobody).
  absl::Status Drop(const cache::SequenceKv& kv, kernels::Stream& stream);

  const context_parallel::ShardPlan& plan(size_t document = 0) const {
    return documents_[document].plan;
  }
  int64_t rows() const { return hidden_.view().rows(); }
  // Seconds of RunLayers that went into choosing what is passed on, but for BeforeRope.
  double compress_seconds() const { return strategy_->compress_seconds(); }
  // Hidden states [rows, D]: the anchor's rows, then those of the documents. For tests.
  const kernels::TensorView& hidden() const { return hidden_.view(); }
  int64_t anchor_rows() const { return anchor_rows_; }
  const std::vector<context_parallel::HostRows>& hosts(size_t document = 0) const {
    return documents_[document].hosts;
  }
  // For tests of hidden states: the last layer computes its output too (nothing else reads it).
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
    std::vector<context_parallel::HostRows> hosts;  // that this rank plays
  };
  // This rank's rows: token ids, positions, and where the K and V of all but the anchor's go.
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
