// Exact attention of new rows over KV that is spread over the ranks: query pass and decode, any
// number of sequences in one batch. Every rank has q of all rows and heads; each attends to its own
// share of the keys; partial results are exchanged by one collective a layer and merged in rank
// order. Replicated: every rank gets all heads. Sliced: a rank gets the heads that it goes on with
// (model::Decoder), which is all that it needs.
#pragma once

#include <vector>

#include "engine/cache/paged_kv_cache.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/partial_results.h"
#include "engine/core/tensor.h"
#include "engine/model/layer_attention.h"

namespace apb::executor {

// New rows of one sequence: positions [position, position + count).
struct BatchTokens {
  cache::SequenceKv* kv = nullptr;
  int64_t document_slots = 0;  // slots of this rank that hold document tokens: all rows see them
  int64_t position = 0;
  int64_t count = 0;
  uint64_t owner_offset = 0;  // row at position p is kept by rank (p + owner_offset) % ranks
};

// What a batch is beside its rows.
struct TokenBatchOptions {
  bool sliced = false;
  // Rows behind those of the batch that belong to no sequence: nothing of them is kept, they see no
  // key, and their results mean nothing.
  int64_t padding = 0;
  // Bound of the slots of all sequences together on this rank; -1: as many as there are. A recorded
  // step serves batches up to its bound.
  int64_t total_slots = -1;
};

class TokenBatchAttention : public model::LayerAttention {
 public:
  TokenBatchAttention(cache::PagedKvCache& cache, kernels::Backend& backend,
                      comm::Communicator& communicator, float scale);

  // Takes cache slots for the rows that this rank keeps. Rows of the batch are those of `batch` one
  // after another. kResourceExhausted leaves the sequences before the failing one with reserved
  // slots: the step has failed. All that changes from step to step is in the backend's memory then,
  // at places that depend on the number of rows and sequences only while memory_moves() stays.
  absl::Status Prepare(const std::vector<BatchTokens>& batch, kernels::Stream& stream,
                       const TokenBatchOptions& options = {});
  const kernels::TensorView& positions() const { return positions_view_; }
  // As of a core::Workspace. The same on all ranks, as it depends on numbers of rows only.
  int64_t memory_moves() const {
    return inputs_.moves() + partial_.moves() + parts_.moves() + gathered_.moves();
  }

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(int layer, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  Store StoreOf(int layer) const override {
    return {{slots_view_, cache_.keys(layer), cache_.values(layer)}};
  }
  bool WantsOutput(int) const override { return true; }
  absl::Status Attend(int layer, const kernels::TensorView& q, const kernels::TensorView& k,
                      const kernels::TensorView& v, const kernels::TensorView& out,
                      kernels::Stream& stream) override;

 private:
  // Takes a slot for each row of one sequence that this rank keeps.
  absl::Status AddSequence(const BatchTokens& rows);
  // Where the kernels find the tables of each sequence: on a device copies of this step's.
  absl::Status PlaceTables(const std::vector<BatchTokens>& batch, kernels::Stream& stream);
  // The rest of what changes from step to step, by one copy.
  absl::Status PlaceInputs(kernels::Stream& stream);
  // Gives every rank the partial results of its heads, and merges those of this rank's to `out`.
  absl::Status MergeSlices(const context_parallel::PartialResults& mine,
                           const kernels::TensorView& out, kernels::Stream& stream);

  cache::PagedKvCache& cache_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const float scale_;
  std::vector<int32_t> staging_positions_;
  std::vector<int64_t> staging_slots_;
  std::vector<int32_t> staging_tables_;
  std::vector<kernels::PagedRows> rows_;  // by sequence, as the next one
  std::vector<kernels::PagedSequence> sequences_;
  std::vector<int64_t> staging_inputs_;
  core::Workspace inputs_, tables_, partial_, parts_, gathered_;
  bool sliced_ = false;
  int64_t total_slots_ = 0;
  const kernels::PagedSequence* placed_sequences_ = nullptr;
  kernels::TensorView positions_view_, slots_view_;
};

}  // namespace apb::executor
