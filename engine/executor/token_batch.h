// Exact attention of a batch of tokens over KV that is spread over the ranks: query pass and decode
// of any number of sequences. Every rank has q of all tokens and heads and attends to its own share
// of the keys. One collective per layer exchanges the partial results, which are combined in rank
// order. Replicated: every rank gets the result of all heads. Sliced: each rank gets only the heads
// that it goes on with (model::Decoder).
#pragma once

#include <vector>

#include "engine/cache/paged_kv_cache.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/partial_results.h"
#include "engine/core/tensor.h"
#include "engine/model/layer_attention.h"

namespace apb::executor {

// Tokens of one sequence, at positions [position, position + count).
struct BatchTokens {
  cache::SequenceKv* kv = nullptr;
  int64_t document_slots = 0;  // slots on this rank that every token of the batch sees
  int64_t position = 0;
  int64_t count = 0;
  uint64_t owner_offset = 0;  // rank (p + owner_offset) % ranks keeps the token at position p
};

// How a batch is run.
struct TokenBatchOptions {
  bool sliced = false;
  // Extra rows behind the batch that belong to no sequence. Their K and V are not stored, they see
  // no key, and their results are undefined.
  int64_t padding = 0;
  // Upper bound for the slots of all sequences together on this rank; -1: their actual number. A
  // recorded step serves all batches up to its bound.
  int64_t total_slots = -1;
};

class TokenBatchAttention : public model::LayerAttention {
 public:
  TokenBatchAttention(cache::PagedKvCache& cache, kernels::Backend& backend,
                      comm::Communicator& communicator, float scale);

  // Reserves cache slots for the tokens that this rank keeps; the rows of the batch are the tokens
  // of `batch`, one sequence after another. kResourceExhausted: the sequences before the failing
  // one keep their new slots, and the step has failed. On return, all inputs that change from step
  // to step are in the backend's memory, at addresses that depend only on the number of rows and
  // sequences while memory_moves() stays the same.
  absl::Status Prepare(const std::vector<BatchTokens>& batch, kernels::Stream& stream,
                       const TokenBatchOptions& options = {});
  const kernels::TensorView& positions() const { return positions_view_; }
  // How often memory of the batch has moved (core::Workspace::moves). It depends only on numbers of
  // rows, so it is equal on all ranks.
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
  // Reserves slots for the tokens of one sequence that this rank keeps.
  absl::Status AddSequence(const BatchTokens& rows);
  // Sets where the kernels find the block tables of each sequence: on a device, in copies made for
  // this step.
  absl::Status PlaceTables(const std::vector<BatchTokens>& batch, kernels::Stream& stream);
  // Copies the other inputs that change from step to step, in one copy.
  absl::Status PlaceInputs(kernels::Stream& stream);
  // Sends every rank the partial results of its heads, and combines those of this rank's heads into
  // `out`.
  absl::Status MergeSlices(const context_parallel::PartialResults& mine,
                           const kernels::TensorView& out, kernels::Stream& stream);

  cache::PagedKvCache& cache_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const float scale_;
  std::vector<int32_t> staging_positions_;
  std::vector<int64_t> staging_slots_;
  std::vector<int32_t> staging_tables_;
  std::vector<kernels::PagedRows> rows_;           // by sequence
  std::vector<kernels::PagedSequence> sequences_;  // by sequence
  std::vector<int64_t> staging_inputs_;
  core::Workspace inputs_, tables_, partial_, parts_, gathered_;
  bool sliced_ = false;
  int64_t total_slots_ = 0;
  const kernels::PagedSequence* placed_sequences_ = nullptr;
  kernels::TensorView positions_view_, slots_view_;
};

}  // namespace apb::executor
