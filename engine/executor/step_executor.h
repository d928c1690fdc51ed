// Executes step plans on one rank: owns the KV cache, the sequences and their prefills. Rank 0 also
// draws tokens; the other ranks run the same rows for their share of the keys.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/mesh.h"
#include "engine/executor/document_prefill.h"
#include "engine/executor/step_graphs.h"
#include "engine/executor/token_batch.h"
#include "engine/sampling/sampler.h"
#include "engine/schedule/events.h"
#include "engine/schedule/request.h"
#include "engine/schedule/step_plan.h"

namespace apb::executor {

// Seconds of document prefills by phase since the start.
struct PrefillPhases {
  double projection = 0, compress = 0, communicate = 0, attend = 0, mlp = 0;
};

class StepExecutor {
 public:
  // Allocates the whole cache. References must outlive the executor. The weights are the tensor
  // parallel share of this rank's place in the mesh.
  static absl::StatusOr<std::unique_ptr<StepExecutor>> Create(const model::Weights& weights,
                                                              const cache::KvCacheShape& shape,
                                                              kernels::Backend& backend,
                                                              const comm::Mesh& mesh);

  // Whether the ranks of the context group divide the products of query and decode rows (sliced),
  // or each compute all of them (replicated, as after Create). The same on all ranks, between
  // steps. False: sliced is not possible, for the reason below.
  bool SetSliced(bool sliced);
  bool sliced() const { return sliced_; }
  const absl::Status& why_not_sliced() const { return why_not_sliced_; }

  // All ranks call it with the same plan. Tokens and failures (of drawing a token) are filled on
  // rank 0 only. Any error is fatal for the group.
  absl::StatusOr<schedule::StepResult> Execute(const schedule::StepPlan& plan);

  // Whether attention goes on while passing blocks travel (AnchorStrategy), in prefills that begin
  // from now on. The same on all ranks.
  void SetOverlap(bool overlap) { overlap_passing_ = overlap; }

  // Computes decode steps operation by operation from now on, instead of as recorded graphs where
  // that can be. The same on all ranks, between steps.
  void DisableGraphs() { graphs_.Disable(); }
  bool uses_graphs() const { return graphs_.enabled(); }

  const PrefillPhases& phases() const { return phases_; }
  const cache::BlockPool& pool() const { return cache_->pool(); }
  const comm::Mesh& mesh() const { return mesh_; }
  size_t sequences() const { return sequences_.size(); }

 private:
  struct Sequence {
    schedule::SequenceSpec spec;
    cache::SequenceKv kv;
    int64_t document_slots = 0;
    // From the first layer until the last one is done; shared by the sequences of a batch.
    std::shared_ptr<DocumentPrefill> prefill;
    sampling::TokenCounts counts;  // rank 0
  };

  StepExecutor(const model::Weights& weights, kernels::Backend& backend, const comm::Mesh& mesh);
  absl::Status Release(schedule::SequenceId id);
  absl::Status Admit(const schedule::SequenceSpec& spec);
  absl::Status StartPrefill(const std::vector<schedule::SequenceId>& ids);
  absl::Status RunPrefill(const schedule::PrefillSlice& slice);
  absl::Status RunSpans(const std::vector<schedule::TokenSpan>& spans,
                        schedule::StepResult& result);
  // The same of a batch of one row for each sequence, all of which draw a token: by graphs.
  absl::Status Decode(const std::vector<schedule::TokenSpan>& spans,
                      const std::vector<BatchTokens>& batch, schedule::StepResult& result);
  // All ranks call it before logits of `rows` rows, which some of them compute.
  void NoteLogits(int64_t rows);
  // How often memory of decode steps has moved, on any rank.
  int64_t memory_moves() const;
  // Whether this rank has a part of the output projection that the leader needs.
  bool computes_logits() const { return sliced_ || mesh_.cp_group().rank() == 0; }
  absl::Status SampleSpans(const std::vector<schedule::TokenSpan>& spans,
                           const kernels::TensorView& hidden, schedule::StepResult& result);
  absl::Status Draw(const std::vector<Sequence*>& owners, const kernels::TensorView& logits,
                    schedule::StepResult& result);

  const model::Weights& weights_;
  kernels::Backend& backend_;
  const comm::Mesh& mesh_;
  bool sliced_ = false;
  absl::Status why_not_sliced_ = absl::FailedPreconditionError("there is one rank");
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<cache::PagedKvCache> cache_;
  std::unique_ptr<TokenBatchAttention> batch_attention_;
  std::map<schedule::SequenceId, Sequence> sequences_;
  std::vector<int32_t> tokens_;  // of the step's rows; a device may read them until the step ends
  core::Workspace ids_, hidden_, sampled_, logits_;
  int64_t most_logits_ = 0, logits_moves_ = 0;
  StepGraphs graphs_;
  sampling::Sampler sampler_;  // rank 0
  PrefillPhases phases_;
  double attend_rest_ = 0;  // at most 0: still to be taken off phases_.attend
  bool overlap_passing_ = false;
};

}  // namespace apb::executor
