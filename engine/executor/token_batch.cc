#include "engine/executor/token_batch.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/partial_results.h"
#include "engine/model/layer_weights.h"

namespace apb::executor {

using kernels::DType;
using kernels::TensorView;

TokenBatchAttention::TokenBatchAttention(cache::PagedKvCache& cache, kernels::Backend& backend,
                                         comm::Communicator& communicator, float scale)
    : cache_(cache),
      backend_(backend),
      communicator_(communicator),
      scale_(scale),
      inputs_(backend),
      tables_(backend),
      partial_(backend),
      parts_(backend),
      gathered_(backend) {}

absl::Status TokenBatchAttention::Prepare(const std::vector<BatchTokens>& batch,
                                          kernels::Stream& stream,
                                          const TokenBatchOptions& options) {
  sliced_ = options.sliced;
  staging_positions_.clear();
  staging_slots_.clear();
  rows_.clear();
  sequences_.clear();
  int64_t slots = 0;
  for (const BatchTokens& rows : batch) {
    APB_RETURN_IF_ERROR(AddSequence(rows));
    slots += rows.kv->slot_count();
  }
  total_slots_ = options.total_slots < 0 ? slots : options.total_slots;
  if (slots > total_slots_) {
    return absl::InternalError(absl::StrCat("a batch has ", slots,
                                            " slots on this rank, more than ", total_slots_,
                                            ", which it is recorded for"));
  }
  APB_RETURN_IF_ERROR(PlaceTables(batch, stream));  // last, as reserving slots may move the tables
  for (int64_t i = 0; i < options.padding; ++i) {
    rows_.push_back({static_cast<int64_t>(staging_positions_.size()), 1});
    sequences_.emplace_back();
    staging_positions_.push_back(0);
    staging_slots_.push_back(-1);
  }
  return PlaceInputs(stream);
}

absl::Status TokenBatchAttention::AddSequence(const BatchTokens& rows) {
  const uint64_t ranks = communicator_.size(), rank = communicator_.rank();
  rows_.push_back({static_cast<int64_t>(staging_positions_.size()), rows.count});
  std::vector<int32_t> kept;
  for (int64_t p = rows.position; p < rows.position + rows.count; ++p) {
    if ((p + rows.owner_offset) % ranks == rank) kept.push_back(static_cast<int32_t>(p));
  }
  APB_ASSIGN_OR_RETURN(const std::vector<int64_t> slots, cache_.Reserve(*rows.kv, kept));
  size_t next = 0;
  for (int64_t p = rows.position; p < rows.position + rows.count; ++p) {
    staging_positions_.push_back(static_cast<int32_t>(p));
    staging_slots_.push_back(next < kept.size() && kept[next] == p ? slots[next++] : -1);
  }
  sequences_.push_back({.slot_count = rows.kv->slot_count(), .causal_begin = rows.document_slots});
  return absl::OkStatus();
}

// The inputs are laid out in words of 8 bytes: sequences, slots, positions.
absl::Status TokenBatchAttention::PlaceInputs(kernels::Stream& stream) {
  constexpr int64_t kSequenceWords = sizeof(kernels::PagedSequence) / sizeof(int64_t);
  const int64_t rows = static_cast<int64_t>(staging_positions_.size()),
                sequences = static_cast<int64_t>(sequences_.size());
  const int64_t size = sequences * kSequenceWords + rows + (rows + 1) / 2;
  staging_inputs_.resize(size);
  const auto place = [&](int64_t* base) {
    placed_sequences_ = reinterpret_cast<const kernels::PagedSequence*>(base);
    base += sequences * kSequenceWords;
    slots_view_ = TensorView::Contiguous(base, DType::kI64, {rows});
    positions_view_ = TensorView::Contiguous(base + rows, DType::kI32, {rows});
  };
  place(staging_inputs_.data());
  std::memcpy(staging_inputs_.data(), sequences_.data(),
              sequences * sizeof(kernels::PagedSequence));
  std::copy(staging_slots_.begin(), staging_slots_.end(), slots_view_.as<int64_t>());
  std::copy(staging_positions_.begin(), staging_positions_.end(), positions_view_.as<int32_t>());
  if (backend_.place() == kernels::Place::kCpu) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(const TensorView inputs, inputs_.Get(DType::kI64, {size}));
  backend_.Copy(TensorView::Contiguous(staging_inputs_.data(), DType::kI64, {size}), inputs,
                stream);
  place(inputs.as<int64_t>());
  return absl::OkStatus();
}

absl::Status TokenBatchAttention::PlaceTables(const std::vector<BatchTokens>& batch,
                                              kernels::Stream& stream) {
  for (size_t i = 0; i < batch.size(); ++i) {
    const cache::SequenceKv& kv = *batch[i].kv;
    sequences_[i].block_table = kv.blocks.data();
    sequences_[i].slot_positions = kv.positions.data() + batch[i].document_slots;
  }
  if (backend_.place() == kernels::Place::kCpu) return absl::OkStatus();
  staging_tables_.clear();
  for (const BatchTokens& rows : batch) {
    const cache::SequenceKv& kv = *rows.kv;
    staging_tables_.insert(staging_tables_.end(), kv.blocks.begin(), kv.blocks.end());
    staging_tables_.insert(staging_tables_.end(), kv.positions.begin() + rows.document_slots,
                           kv.positions.end());
  }
  const int64_t size = static_cast<int64_t>(staging_tables_.size());
  APB_ASSIGN_OR_RETURN(const TensorView tables, tables_.Get(DType::kI32, {size}));
  backend_.Copy(TensorView::Contiguous(staging_tables_.data(), DType::kI32, {size}), tables,
                stream);
  const int32_t* at = tables.as<int32_t>();
  for (size_t i = 0; i < batch.size(); ++i) {
    const cache::SequenceKv& kv = *batch[i].kv;
    sequences_[i].block_table = at;
    sequences_[i].slot_positions = at + kv.blocks.size();
    at = sequences_[i].slot_positions + (kv.slot_count() - batch[i].document_slots);
  }
  return absl::OkStatus();
}

absl::Status TokenBatchAttention::BeforeRope(int, const TensorView&, kernels::Stream&) {
  return absl::InternalError("TokenBatchAttention does not read projections before RoPE");
}

absl::Status TokenBatchAttention::Attend(int layer, const TensorView& q, const TensorView&,
                                         const TensorView&, const TensorView& out,
                                         kernels::Stream& stream) {
  kernels::PagedAttentionArgs args{.q = q,
                                   .q_positions = positions_view_,
                                   .k_cache = cache_.keys(layer),
                                   .v_cache = cache_.values(layer),
                                   .rows = rows_,
                                   .sequences = placed_sequences_,
                                   .total_slots = total_slots_,
                                   .scale = scale_,
                                   .out = out};
  const int64_t ranks = communicator_.size();
  if (ranks == 1) {
    backend_.PagedAttention(args, stream);
    return absl::OkStatus();
  }
  // Outputs and log-sum-exps lie in one buffer, so that one collective carries both.
  const int64_t rows = q.shape[0], heads = q.shape[1], d = q.shape[2];
  APB_ASSIGN_OR_RETURN(const context_parallel::PartialResults mine,
                       context_parallel::PartialResults::In(partial_, 1, rows, heads, d));
  args.out = mine.Out(0);
  args.lse = mine.Lse(0);
  backend_.PagedAttention(args, stream);
  if (sliced_) return MergeSlices(mine, out, stream);
  APB_ASSIGN_OR_RETURN(const context_parallel::PartialResults all,
                       context_parallel::PartialResults::In(gathered_, ranks, rows, heads, d));
  APB_RETURN_IF_ERROR(communicator_.AllGather(mine.Message(0), all.all(), stream));
  backend_.MergePartials(all.Outs(), all.Lses(), out, {}, stream);
  return absl::OkStatus();
}

absl::Status TokenBatchAttention::MergeSlices(const context_parallel::PartialResults& mine,
                                              const TensorView& out, kernels::Stream& stream) {
  const int ranks = communicator_.size(), rank = communicator_.rank();
  const int64_t rows = out.shape[0], d = out.shape[2], heads = mine.Out(0).shape[1];
  // AllToAll needs parts of equal size: that of the largest slice.
  const auto heads_of = [&](int r) { return model::PartOf(heads, {r, ranks}); };
  const int64_t most = (heads + ranks - 1) / ranks, size = rows * most * (d + 1);
  APB_ASSIGN_OR_RETURN(const TensorView send, parts_.Get(DType::kF32, {ranks, size}));
  APB_ASSIGN_OR_RETURN(const TensorView received, gathered_.Get(DType::kF32, {ranks, size}));
  for (int r = 0; r < ranks; ++r) {
    const model::Range slice = heads_of(r);
    const context_parallel::PartialResults part =
        context_parallel::PartialResults::At(send.Rows(r, r + 1), 1, rows, slice.length(), d);
    TensorView from = mine.Out(0);
    from.data = from.as<float>() + slice.begin * d;
    from.shape[1] = slice.length();
    backend_.Copy(from, part.Out(0), stream);
    backend_.Copy(mine.Lse(0).Columns(slice.begin, slice.end), part.Lse(0), stream);
  }
  APB_RETURN_IF_ERROR(communicator_.AllToAll(send, received, stream));
  const int64_t own = heads_of(rank).length();
  TensorView outs = TensorView::Contiguous(received.data, DType::kF32, {ranks, rows, own, d});
  outs.stride[0] = size;
  TensorView lses = TensorView::Contiguous(received.as<float>() + rows * own * d, DType::kF32,
                                           {ranks, rows, own});
  lses.stride[0] = size;
  backend_.MergePartials(outs, lses, out, {}, stream);
  return absl::OkStatus();
}

}  // namespace apb::executor
