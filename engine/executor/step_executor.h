// Executes step plans on one rank; owns the KV cache, the sequences and their prefills. Rank 0 also
// draws the tokens; the other ranks run the same tokens against their share of the keys.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/mesh.h"
#include "engine/executor/document_prefill.h"
#include "engine/executor/logits_observer.h"
#include "engine/executor/step_graphs.h"
#include "engine/executor/token_batch.h"
#include "engine/sampling/sampler.h"
#include "engine/schedule/events.h"
#include "engine/schedule/request.h"
#include "engine/schedule/step_plan.h"

namespace apb::executor {

// Seconds of document prefills since the start, by phase.
struct PrefillPhases {
  double projection = 0, compress = 0, communicate = 0, attend = 0, mlp = 0;
};

class StepExecutor {
 public:
  // Allocates the whole KV cache (kResourceExhausted if it does not fit). All references must
  // outlive the executor. `weights` are the tensor-parallel share of this rank's place in the mesh.
  // All ranks call it together.
  static absl::StatusOr<std::unique_ptr<StepExecutor>> Create(const model::Weights& weights,
                                                              const cache::KvCacheShape& shape,
                                                              kernels::Backend& backend,
                                                              const comm::Mesh& mesh);

  // Sets whether the ranks of the cp_group divide the matrix products of query and decode tokens
  // (sliced) or each rank computes all of them (replicated, the state after Create). All ranks call
  // it with the same value, between steps. False: sliced is impossible, for the reason
  // why_not_sliced().
  bool SetSliced(bool sliced);
  bool sliced() const { return sliced_; }
  const absl::Status& why_not_sliced() const { return why_not_sliced_; }

  // All ranks call it with the same plan. Only rank 0 returns tokens, and failures to draw one. An
  // error is fatal for the group.
  absl::StatusOr<schedule::StepResult> Execute(const schedule::StepPlan& plan);

  // Sets whether attention continues while passing blocks travel, in prefills that begin from now
  // on. The same on all ranks.
  void SetOverlap(bool overlap) { overlap_passing_ = overlap; }

  // From now on, launches decode steps operation by operation instead of as recorded graphs. The
  // same on all ranks, between steps.
  void DisableGraphs() { graphs_.Disable(); }
  bool uses_graphs() const { return graphs_.enabled(); }

  // On rank 0, between steps; null: none. Must outlive the executor, or be taken away.
  void SetLogitsObserver(LogitsObserver* observer) { observer_ = observer; }

  const PrefillPhases& phases() const { return phases_; }
  const cache::BlockPool& pool() const { return cache_->pool(); }
  const comm::Mesh& mesh() const { return mesh_; }
  size_t sequences() const { return sequences_.size(); }

 private:
  struct Sequence {
    schedule::SequenceSpec spec;
    cache::SequenceKv kv;
    int64_t document_slots = 0;  // slots with tokens that every later token sees
    // Set from the first layer to the last; shared by the sequences of a batch.
    std::shared_ptr<DocumentPrefill> prefill;
    sampling::TokenCounts counts;  // on rank 0 only
  };

  StepExecutor(const model::Weights& weights, kernels::Backend& backend, const comm::Mesh& mesh);
  absl::Status Release(schedule::SequenceId id);
  absl::Status Admit(const schedule::SequenceSpec& spec);
  absl::Status StartPrefill(const std::vector<schedule::SequenceId>& ids);
  absl::Status RunPrefill(const schedule::PrefillSlice& slice);
  absl::Status RunSpans(const std::vector<schedule::TokenSpan>& spans,
                        schedule::StepResult& result);
  // Like RunSpans, for batches in which every sequence runs one token and draws one: by graphs.
  absl::Status Decode(const std::vector<schedule::TokenSpan>& spans,
                      const std::vector<BatchTokens>& batch, schedule::StepResult& result);
  // Notes that the leader will need memory for logits of `rows` tokens. All ranks call it, whether
  // they compute logits or not, so that memory_moves() stays equal.
  void NoteLogits(int64_t rows);
  // How often memory that decode steps use has moved; the same number on all ranks.
  int64_t memory_moves() const;
  // Whether this rank computes a part of the logits.
  bool computes_logits() const { return sliced_ || mesh_.cp_group().rank() == 0; }
  // Computes the logits of the spans that draw a token and, on rank 0, draws them.
  absl::Status SampleSpans(const std::vector<schedule::TokenSpan>& spans,
                           const kernels::TensorView& hidden, schedule::StepResult& result);
  // Draws a token for each of `owners` from its row of `logits` [owners, vocab]. Rank 0 only.
  absl::Status Draw(const std::vector<Sequence*>& owners, const kernels::TensorView& logits,
                    schedule::StepResult& result);
  // Tokens that the observer chooses, by row; -1: the row's token is drawn. Synchronizes if it
  // wants any row.
  absl::StatusOr<std::vector<int32_t>> Observe(const std::vector<Sequence*>& owners,
                                               const kernels::TensorView& logits);

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
  std::vector<int32_t> tokens_;  // of the step; a device may read them until the step ends
  core::Workspace ids_, hidden_, sampled_, logits_;
  int64_t most_logits_ = 0, logits_moves_ = 0;
  StepGraphs graphs_;
  sampling::Sampler sampler_;  // used on rank 0 only
  LogitsObserver* observer_ = nullptr;
  std::vector<float> observed_;  // [observed rows, V]
  PrefillPhases phases_;
  double attend_rest_ = 0;  // at most 0: seconds still to be subtracted from phases_.attend
  bool overlap_passing_ = false;
};

}  // namespace apb::executor
