#include "engine/attention/ring_strategy.h"

#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"

namespace apb::attention {

using kernels::DType;
using kernels::KeySegment;
using kernels::TensorView;
using kernels::Visibility;

namespace {

// Chunk 0 or 1 of a host, as its number among all 2 * hosts chunks.
int ChunkOf(int host, int which, int hosts) { return which == 0 ? host : 2 * hosts - 1 - host; }

Visibility See(int query_chunk, int key_chunk) {
  if (key_chunk == query_chunk) return Visibility::kCausal;
  return key_chunk < query_chunk ? Visibility::kAll : Visibility::kNone;
}

// A message of keys and values: [2, T, n_kv, d].
TensorView Half(const TensorView& both, int which) {
  TensorView view = both.Rows(which, which + 1);
  view.rank = 3;
  view.shape = {both.shape[1], both.shape[2], both.shape[3], 0};
  view.stride = {both.stride[1], both.stride[2], both.stride[3], 0};
  return view;
}

}  // namespace

RingStrategy::RingStrategy(const ShardPlan& plan, kernels::Backend& backend,
                           parallel::Communicator& communicator)
    : plan_(plan),
      backend_(backend),
      communicator_(communicator),
      rank_(communicator.rank()),
      ranks_(communicator.size()),
      travelling_{core::Workspace(backend), core::Workspace(backend)},
      partials_(backend),
      visitors_(backend) {}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> RingStrategy::Create(
    const ShardPlan& plan, kernels::Backend& backend, parallel::Communicator& communicator) {
  std::unique_ptr<RingStrategy> strategy(new RingStrategy(plan, backend, communicator));
  std::vector<int32_t> positions;
  for (const HostShard& host : plan.hosts) {
    strategy->position_begin_.push_back(static_cast<int64_t>(positions.size()));
    for (const TokenSpan& span : host.local) {
      for (int64_t t = span.begin; t < span.end; ++t) positions.push_back(static_cast<int32_t>(t));
    }
  }
  const int64_t count = static_cast<int64_t>(positions.size());
  APB_ASSIGN_OR_RETURN(strategy->positions_,
                       core::Tensor::CopyOf(backend, TensorView::Contiguous(positions.data(),
                                                                            DType::kI32, {count})));
  return std::unique_ptr<ContextParallelStrategy>(std::move(strategy));
}

TensorView RingStrategy::PositionsOf(int host) const {
  const int64_t begin = position_begin_[host];
  return positions_.view().Rows(begin, begin + RowsOf(host));
}

absl::Status RingStrategy::BeforeRope(const LayerCall&, const TensorView&, kernels::Stream&) {
  return absl::InternalError("ring strategies do not read projections before RoPE");
}

absl::Status RingStrategy::Attend(const LayerCall& call, kernels::Stream& stream) {
  switch (plan_.exchange) {
    case Exchange::kRingKv:
      APB_RETURN_IF_ERROR(PassKv(call, stream));
      break;
    case Exchange::kRingQ:
      APB_RETURN_IF_ERROR(PassQ(call, stream));
      break;
    default:
      APB_RETURN_IF_ERROR(PassTokens(call, stream));
      break;
  }
  return stream.Synchronize();
}

// Both shards are two chunks of the document, so a whole chunk is seen by all rows of another one,
// by none, or (the same chunk) causally: no mask is computed but on the diagonal.
void RingStrategy::AttendPart(const LayerCall& call, int query_host, const TensorView& q,
                              int key_host, const TensorView& k, const TensorView& v,
                              const PartialResults& results, int64_t part,
                              kernels::Stream& stream) {
  if (q.rows() == 0) return;
  const std::vector<TokenSpan>& keys = plan_.hosts[key_host].local;
  const TensorView key_positions = PositionsOf(key_host);
  std::vector<KeySegment> segments;
  int64_t at = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const int64_t end = at + keys[i].length();
    const int key_chunk = ChunkOf(key_host, static_cast<int>(i), ranks_);
    segments.push_back({.k = k.Rows(at, end),
                        .v = v.Rows(at, end),
                        .positions = key_positions.Rows(at, end),
                        .visible_to_group = {See(ChunkOf(query_host, 0, ranks_), key_chunk),
                                             See(ChunkOf(query_host, 1, ranks_), key_chunk)}});
    at = end;
  }
  backend_.Attention({.q = q,
                      .q_positions = PositionsOf(query_host),
                      .group_split = plan_.hosts[query_host].local[0].length(),
                      .keys = segments,
                      .scale = call.scale,
                      .out = results.Out(part),
                      .lse = results.Lse(part)},
                     stream);
}

absl::StatusOr<std::unique_ptr<parallel::Pending>> RingStrategy::PassOn(const TensorView& held,
                                                                        const TensorView& next,
                                                                        kernels::Stream& stream) {
  return communicator_.StartSendRecv(held, Behind(-1), next, Behind(1), stream);
}

absl::Status RingStrategy::PassKv(const LayerCall& call, kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  const int64_t kv_heads = call.k.shape[1];
  APB_ASSIGN_OR_RETURN(const PartialResults results,
                       PartialResults::In(partials_, 2, rows, heads, d));
  APB_ASSIGN_OR_RETURN(TensorView held, travelling_[0].Get(call.k.dtype, {2, rows, kv_heads, d}));
  backend_.Copy(call.k, Half(held, 0), stream);
  backend_.Copy(call.v, Half(held, 1), stream);
  for (int step = 0; step < ranks_; ++step) {
    const bool last = step + 1 == ranks_;
    TensorView next;
    std::unique_ptr<parallel::Pending> transfer;
    if (!last) {
      APB_ASSIGN_OR_RETURN(next, travelling_[(step + 1) % 2].Get(
                                     call.k.dtype, {2, RowsOf(Behind(step + 1)), kv_heads, d}));
      APB_ASSIGN_OR_RETURN(transfer, PassOn(held, next, stream));
    }
    AttendPart(call, rank_, call.q, Behind(step), Half(held, 0), Half(held, 1), results,
               step == 0 ? 0 : 1, stream);
    if (step > 0 && !last) {
      backend_.MergePartials(results.Outs(), results.Lses(), results.Out(0), results.Lse(0),
                             stream);
    }
    if (transfer != nullptr) APB_RETURN_IF_ERROR(transfer->Wait(stream));
    held = next;
  }
  const int64_t parts = ranks_ > 1 ? 2 : 1;
  backend_.MergePartials(results.Outs().Rows(0, parts), results.Lses().Rows(0, parts), call.out, {},
                         stream);
  return absl::OkStatus();
}

absl::Status RingStrategy::ForEachVisitor(const LayerCall& call, Visit visit,
                                          kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(TensorView held, travelling_[0].Get(call.q.dtype, {rows, heads, d}));
  backend_.Copy(call.q, held, stream);
  for (int step = 0; step < ranks_; ++step) {
    TensorView next;
    std::unique_ptr<parallel::Pending> transfer;
    if (step + 1 < ranks_) {
      APB_ASSIGN_OR_RETURN(next, travelling_[(step + 1) % 2].Get(
                                     call.q.dtype, {RowsOf(Behind(step + 1)), heads, d}));
      APB_ASSIGN_OR_RETURN(transfer, PassOn(held, next, stream));
    }
    APB_RETURN_IF_ERROR(visit(step, Behind(step), held));
    if (transfer != nullptr) APB_RETURN_IF_ERROR(transfer->Wait(stream));
    held = next;
  }
  return absl::OkStatus();
}

absl::Status RingStrategy::PassQ(const LayerCall& call, kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  // Of this rank's rows: part r over rank r's keys. Of visitors: one after the other.
  APB_ASSIGN_OR_RETURN(const PartialResults mine,
                       PartialResults::In(partials_, ranks_, rows, heads, d));
  int64_t visiting_rows = 0;
  for (int host = 0; host < ranks_; ++host) visiting_rows += host == rank_ ? 0 : RowsOf(host);
  APB_ASSIGN_OR_RETURN(const TensorView memory,
                       visitors_.Get(DType::kF32, {visiting_rows * heads * (d + 1)}));
  std::vector<PartialResults> visitors;
  int64_t used = 0;
  APB_RETURN_IF_ERROR(ForEachVisitor(
      call,
      [&](int step, int owner, const TensorView& q) {
        if (step > 0) {
          const int64_t size = RowsOf(owner) * heads * (d + 1);
          visitors.push_back(
              PartialResults::At(memory.Rows(used, used + size), 1, RowsOf(owner), heads, d));
          used += size;
        }
        AttendPart(call, owner, q, rank_, call.k, call.v, step == 0 ? mine : visitors.back(),
                   step == 0 ? rank_ : 0, stream);
        return absl::OkStatus();
      },
      stream));
  for (int step = 1; step < ranks_; ++step) {  // home: to the owner, from the rank as far ahead
    APB_RETURN_IF_ERROR(communicator_.SendRecv(visitors[step - 1].Message(0), Behind(step),
                                               mine.Message(Behind(-step)), Behind(-step), stream));
  }
  backend_.MergePartials(mine.Outs(), mine.Lses(), call.out, {}, stream);
  return absl::OkStatus();
}

absl::Status RingStrategy::PassTokens(const LayerCall& call, kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  // Part 0: merged so far. Part 1: what comes back.
  APB_ASSIGN_OR_RETURN(const PartialResults mine, PartialResults::In(partials_, 2, rows, heads, d));
  int64_t most = 0;
  for (int host = 0; host < ranks_; ++host) most = std::max(most, RowsOf(host));
  const int64_t each = most * heads * (d + 1);
  // Two, because one returns while the next is computed.
  APB_ASSIGN_OR_RETURN(const TensorView memory, visitors_.Get(DType::kF32, {2 * each}));
  std::unique_ptr<parallel::Pending> returning;
  APB_RETURN_IF_ERROR(ForEachVisitor(
      call,
      [&](int step, int owner, const TensorView& q) -> absl::Status {
        if (step == 0) {
          AttendPart(call, owner, q, rank_, call.k, call.v, mine, 0, stream);
          return absl::OkStatus();
        }
        const int64_t begin = step % 2 * each, size = RowsOf(owner) * heads * (d + 1);
        const PartialResults result =
            PartialResults::At(memory.Rows(begin, begin + size), 1, RowsOf(owner), heads, d);
        AttendPart(call, owner, q, rank_, call.k, call.v, result, 0, stream);
        if (returning != nullptr) {
          APB_RETURN_IF_ERROR(returning->Wait(stream));
          backend_.MergePartials(mine.Outs(), mine.Lses(), mine.Out(0), mine.Lse(0), stream);
        }
        APB_ASSIGN_OR_RETURN(returning,
                             communicator_.StartSendRecv(result.Message(0), owner, mine.Message(1),
                                                         Behind(-step), stream));
        return absl::OkStatus();
      },
      stream));
  if (returning != nullptr) APB_RETURN_IF_ERROR(returning->Wait(stream));
  const int64_t parts = ranks_ > 1 ? 2 : 1;
  backend_.MergePartials(mine.Outs().Rows(0, parts), mine.Lses().Rows(0, parts), call.out, {},
                         stream);
  return absl::OkStatus();
}

}  // namespace apb::attention
