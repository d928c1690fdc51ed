#include "engine/context_parallel/ring/attend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/ring/ring.h"

namespace apb::context_parallel {

using kernels::DType;
using kernels::KeySegment;
using kernels::TensorView;
using kernels::Visibility;

namespace {

// How the rows of one span see the keys of another span of the same document. The two spans are
// either equal or disjoint.
Visibility See(const TokenSpan& rows, const TokenSpan& keys) {
  if (keys.end <= rows.begin) return Visibility::kAll;
  return rows.end <= keys.begin ? Visibility::kNone : Visibility::kCausal;
}

// The keys (0) or the values (1) of a message that holds both, [2, T, n_kv, d].
TensorView Half(const TensorView& both, int which) {
  TensorView view = both.Rows(which, which + 1);
  view.rank = 3;
  view.shape = {both.shape[1], both.shape[2], both.shape[3], 0};
  view.stride = {both.stride[1], both.stride[2], both.stride[3], 0};
  return view;
}

std::vector<const ShardPlan*> PlansOf(std::span<const StrategyDocument> documents) {
  std::vector<const ShardPlan*> plans;
  for (const StrategyDocument& document : documents) plans.push_back(document.plan);
  return plans;
}

// The number of tokens that each host has of each document's cached prefix, by document and host.
absl::StatusOr<std::vector<std::vector<int64_t>>> CachedCounts(
    std::span<const StrategyDocument> documents, kernels::Backend& backend,
    comm::Communicator& communicator, kernels::Stream& stream) {
  const size_t count = documents.size(), hosts = documents[0].plan->hosts.size();
  std::vector<int64_t> mine, all(count * hosts, 0);
  bool any = false;
  for (const StrategyDocument& document : documents) {
    mine.push_back(static_cast<int64_t>(document.cached_slots.size()));
    any |= document.prefix_length > 0;
  }
  const auto host_view = [&](std::vector<int64_t>& values) {
    return TensorView::Contiguous(values.data(), DType::kI64,
                                  {static_cast<int64_t>(values.size())});
  };
  if (any && hosts > 1) {
    APB_ASSIGN_OR_RETURN(const core::Tensor send, core::Tensor::CopyOf(backend, host_view(mine)));
    APB_ASSIGN_OR_RETURN(const core::Tensor received,
                         core::Tensor::CopyOf(backend, host_view(all)));
    APB_RETURN_IF_ERROR(communicator.AllGather(send.view(), received.view(), stream));
    backend.Copy(received.view(), host_view(all), stream);
    APB_RETURN_IF_ERROR(stream.Synchronize());
  } else if (any) {
    all = mine;
  }
  std::vector<std::vector<int64_t>> cached(count, std::vector<int64_t>(hosts));
  for (size_t i = 0; i < count; ++i) {
    int64_t found = 0;
    for (size_t h = 0; h < hosts; ++h) found += cached[i][h] = all[h * count + i];
    if (found != documents[i].prefix_length) {
      return absl::InternalError(absl::StrCat("the ranks keep ", found, " tokens of a prefix of ",
                                              documents[i].prefix_length));
    }
  }
  return cached;
}

}  // namespace

RingStrategy::RingStrategy(std::span<const StrategyDocument> documents, const StrategyDeps& deps,
                           Travels travels, RingShards shards)
    : plans_(PlansOf(documents)),
      travels_(travels),
      shards_(std::move(shards)),
      cache_(deps.cache),
      backend_(deps.backend),
      communicator_(deps.communicator),
      rank_(deps.communicator.rank()),
      ranks_(shards_.hosts()),
      travelling_{core::Workspace(deps.backend), core::Workspace(deps.backend)},
      home_(deps.backend),
      partials_(deps.backend),
      visitors_(deps.backend) {}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> RingStrategy::Create(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, Travels travels,
    kernels::Stream& stream) {
  APB_ASSIGN_OR_RETURN(const auto cached,
                       CachedCounts(documents, deps.backend, deps.communicator, stream));
  std::unique_ptr<RingStrategy> strategy(
      new RingStrategy(documents, deps, travels, RingShards(PlansOf(documents), cached)));
  APB_RETURN_IF_ERROR(strategy->CopyToDevice(documents));
  return std::unique_ptr<ContextParallelStrategy>(std::move(strategy));
}

absl::Status RingStrategy::CopyToDevice(std::span<const StrategyDocument> documents) {
  for (const StrategyDocument& document : documents) {
    std::vector<int64_t> slots = document.cached_slots;
    const int64_t count = static_cast<int64_t>(slots.size());
    has_cached_ |= count > 0;
    APB_ASSIGN_OR_RETURN(
        cached_slots_.emplace_back(),
        core::Tensor::CopyOf(backend_, TensorView::Contiguous(slots.data(), DType::kI64, {count})));
  }
  std::vector<int32_t> positions;
  for (int h = 0; h < ranks_; ++h) {
    position_begin_.push_back(static_cast<int64_t>(positions.size()));
    for (const ShardPlan* plan : plans_) {
      for (const TokenSpan& span : plan->hosts[h].local) {
        for (int64_t t = span.begin; t < span.end; ++t)
          positions.push_back(static_cast<int32_t>(t));
      }
    }
  }
  const int64_t count = static_cast<int64_t>(positions.size());
  APB_ASSIGN_OR_RETURN(
      positions_, core::Tensor::CopyOf(
                      backend_, TensorView::Contiguous(positions.data(), DType::kI32, {count})));
  return absl::OkStatus();
}

TensorView RingStrategy::PositionsOf(int host) const {
  const int64_t begin = position_begin_[host];
  return positions_.view().Rows(begin, begin + RowsOf(host));
}

absl::Status RingStrategy::BeforeRope(const LayerCall&, const TensorView&, kernels::Stream&) {
  return absl::InternalError("ring strategies do not read projections before RoPE");
}

absl::Status RingStrategy::Attend(const LayerCall& call, kernels::Stream& stream) {
  if (rank_ >= ranks_) return absl::OkStatus();  // the plan's only host is on rank 0
  if (ranks_ == 1) {
    APB_ASSIGN_OR_RETURN(const Keys keys, HomeKeys(call, stream));
    AttendPart(call, 0, call.q, 0, keys, {.out = call.out}, stream);
    return absl::OkStatus();
  }
  switch (travels_) {
    case Travels::kKeys:
      return PassKv(call, stream);
    case Travels::kQueries:
      return PassQ(call, stream);
    case Travels::kQueriesAndResults:
      return PassTokens(call, stream);
    case Travels::kNothing:
      break;
  }
  return absl::InternalError("a ring of several ranks in which nothing travels");
}

absl::StatusOr<TensorView> RingStrategy::KeyMessage(const LayerCall& call, core::Workspace& memory,
                                                    kernels::Stream& stream) {
  const int64_t kv_heads = call.k.shape[1], d = call.k.shape[2];
  APB_ASSIGN_OR_RETURN(const TensorView message,
                       memory.Get(call.k.dtype, {2, shards_.keys(rank_), kv_heads, d}));
  const TensorView k = Half(message, 0), v = Half(message, 1);
  for (size_t i = 0; i < plans_.size(); ++i) {
    const RingShards::Part& part = shards_.parts(rank_)[i];
    if (part.new_begin > part.key_begin) {
      backend_.ReadFromCache(cached_slots_[i].view(), cache_.keys(call.layer),
                             cache_.values(call.layer), k.Rows(part.key_begin, part.new_begin),
                             v.Rows(part.key_begin, part.new_begin), stream);
    }
    backend_.Copy(call.k.Rows(part.row_begin, part.row_end), k.Rows(part.new_begin, part.key_end),
                  stream);
    backend_.Copy(call.v.Rows(part.row_begin, part.row_end), v.Rows(part.new_begin, part.key_end),
                  stream);
  }
  return message;
}

absl::StatusOr<RingStrategy::Keys> RingStrategy::HomeKeys(const LayerCall& call,
                                                          kernels::Stream& stream) {
  if (!has_cached_) return Keys{call.k, call.v};
  APB_ASSIGN_OR_RETURN(const TensorView message, KeyMessage(call, home_, stream));
  return Keys{Half(message, 0), Half(message, 1)};
}

// A host's rows and keys of a document are at most two spans. So the rows of one span see all keys
// of another span, or none, or (if it is the same span) see them causally: only the diagonal needs
// a mask.
void RingStrategy::AttendPart(const LayerCall& call, int query_host, const TensorView& q,
                              int key_host, const Keys& keys, const Result& result,
                              kernels::Stream& stream) {
  const TensorView query_positions = PositionsOf(query_host), key_positions = PositionsOf(key_host);
  for (size_t i = 0; i < plans_.size(); ++i) {
    const RingShards::Part &rows = shards_.parts(query_host)[i], &own = shards_.parts(key_host)[i];
    if (rows.row_begin == rows.row_end) continue;
    const std::vector<TokenSpan>& groups = plans_[i]->hosts[query_host].local;
    std::vector<KeySegment> segments;
    if (own.new_begin > own.key_begin) {
      segments.push_back({.k = keys.k.Rows(own.key_begin, own.new_begin),
                          .v = keys.v.Rows(own.key_begin, own.new_begin),
                          .visible_to_group = {Visibility::kAll, Visibility::kAll}});
    }
    int64_t at = 0;
    for (const TokenSpan& span : plans_[i]->hosts[key_host].local) {
      const int64_t key = own.new_begin + at, row = own.row_begin + at;
      segments.push_back(
          {.k = keys.k.Rows(key, key + span.length()),
           .v = keys.v.Rows(key, key + span.length()),
           .positions = key_positions.Rows(row, row + span.length()),
           .visible_to_group = {See(groups.front(), span), See(groups.back(), span)}});
      at += span.length();
    }
    TensorView lse = result.lse;
    if (lse.present()) lse = lse.Rows(rows.row_begin, rows.row_end);
    backend_.Attention({.q = q.Rows(rows.row_begin, rows.row_end),
                        .q_positions = query_positions.Rows(rows.row_begin, rows.row_end),
                        .group_split = groups.front().length(),
                        .keys = segments,
                        .scale = call.scale,
                        .out = result.out.Rows(rows.row_begin, rows.row_end),
                        .lse = lse},
                       stream);
  }
}

absl::StatusOr<std::unique_ptr<comm::Pending>> RingStrategy::PassOn(const TensorView& held,
                                                                    const TensorView& next,
                                                                    kernels::Stream& stream) {
  return communicator_.StartSendRecv(held, Behind(-1), next, Behind(1), stream);
}

absl::Status RingStrategy::PassKv(const LayerCall& call, kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(const PartialResults results,
                       PartialResults::In(partials_, 2, rows, heads, d));
  APB_ASSIGN_OR_RETURN(TensorView held, KeyMessage(call, travelling_[0], stream));
  for (int step = 0; step < ranks_; ++step) {
    const bool last = step + 1 == ranks_;
    TensorView next;
    std::unique_ptr<comm::Pending> transfer;
    if (!last) {
      APB_ASSIGN_OR_RETURN(
          next, travelling_[(step + 1) % 2].Get(
                    call.k.dtype, {2, shards_.keys(Behind(step + 1)), call.k.shape[1], d}));
      APB_ASSIGN_OR_RETURN(transfer, PassOn(held, next, stream));
    }
    const int part = step == 0 ? 0 : 1;
    AttendPart(call, rank_, call.q, Behind(step), {Half(held, 0), Half(held, 1)},
               {results.Out(part), results.Lse(part)}, stream);
    if (step > 0 && !last) {
      backend_.MergePartials(results.Outs(), results.Lses(), results.Out(0), results.Lse(0),
                             stream);
    }
    if (transfer != nullptr) APB_RETURN_IF_ERROR(transfer->Wait(stream));
    held = next;
  }
  backend_.MergePartials(results.Outs(), results.Lses(), call.out, {}, stream);
  return absl::OkStatus();
}

absl::Status RingStrategy::ForEachVisitor(const LayerCall& call, Visit visit,
                                          kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(TensorView held, travelling_[0].Get(call.q.dtype, {rows, heads, d}));
  backend_.Copy(call.q, held, stream);
  for (int step = 0; step < ranks_; ++step) {
    TensorView next;
    std::unique_ptr<comm::Pending> transfer;
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
  APB_ASSIGN_OR_RETURN(const Keys keys, HomeKeys(call, stream));
  // `mine` holds this rank's rows: part r is their attention over rank r's keys. `visitors` hold
  // the other ranks' rows, one after the other in `memory`.
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
        const PartialResults& results = step == 0 ? mine : visitors.back();
        const int part = step == 0 ? rank_ : 0;
        AttendPart(call, owner, q, rank_, keys, {results.Out(part), results.Lse(part)}, stream);
        return absl::OkStatus();
      },
      stream));
  // Each result returns to its owner, `step` ranks back, while this rank's result comes from the
  // rank `step` ahead.
  for (int step = 1; step < ranks_; ++step) {
    APB_RETURN_IF_ERROR(communicator_.SendRecv(visitors[step - 1].Message(0), Behind(step),
                                               mine.Message(Behind(-step)), Behind(-step), stream));
  }
  backend_.MergePartials(mine.Outs(), mine.Lses(), call.out, {}, stream);
  return absl::OkStatus();
}

absl::Status RingStrategy::PassTokens(const LayerCall& call, kernels::Stream& stream) {
  const int64_t rows = call.q.shape[0], heads = call.q.shape[1], d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(const Keys keys, HomeKeys(call, stream));
  // Part 0: the results combined so far. Part 1: the result that returns next.
  APB_ASSIGN_OR_RETURN(const PartialResults mine, PartialResults::In(partials_, 2, rows, heads, d));
  int64_t most = 0;
  for (int host = 0; host < ranks_; ++host) most = std::max(most, RowsOf(host));
  const int64_t each = most * heads * (d + 1);
  // Two buffers, because one result returns while the next one is computed.
  APB_ASSIGN_OR_RETURN(const TensorView memory, visitors_.Get(DType::kF32, {2 * each}));
  std::unique_ptr<comm::Pending> returning;
  APB_RETURN_IF_ERROR(ForEachVisitor(
      call,
      [&](int step, int owner, const TensorView& q) -> absl::Status {
        if (step == 0) {
          AttendPart(call, owner, q, rank_, keys, {mine.Out(0), mine.Lse(0)}, stream);
          return absl::OkStatus();
        }
        const int64_t begin = step % 2 * each, size = RowsOf(owner) * heads * (d + 1);
        const PartialResults result =
            PartialResults::At(memory.Rows(begin, begin + size), 1, RowsOf(owner), heads, d);
        AttendPart(call, owner, q, rank_, keys, {result.Out(0), result.Lse(0)}, stream);
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
  backend_.MergePartials(mine.Outs(), mine.Lses(), call.out, {}, stream);
  return absl::OkStatus();
}

// The memory and the creation functions of ring.h.
namespace {

// The number of rows of the rank that has most, of call.rank, and of all other ranks together.
struct RowCounts {
  explicit RowCounts(const MemoryCall& call) {
    for (int h = 0; h < static_cast<int>(call.plan.hosts.size()); ++h) {
      const int64_t rows = call.plan.hosts[h].local_length();
      most = std::max(most, rows);
      (h == call.rank ? own : others) += rows;
    }
  }
  int64_t most = 0, own = 0, others = 0;
};

// Bytes of the positions and of two messages: the one that a rank holds, and the next one.
int64_t MessageBytes(const MemoryCall& call, int64_t rows, int64_t width) {
  return RingStrategy::PositionBytes(call.plan) + 2 * rows * width * call.model.element_bytes;
}

}  // namespace

int64_t RingKvPrefillBytes(const MemoryCall& call) {
  if (call.ranks == 1) return RingStrategy::PositionBytes(call.plan);
  const RowCounts rows(call);
  return MessageBytes(call, rows.most, call.model.kv_width()) +
         2 * call.model.partial_bytes(rows.own);
}

int64_t RingQPrefillBytes(const MemoryCall& call) {
  if (call.ranks == 1) return RingStrategy::PositionBytes(call.plan);
  const RowCounts rows(call);
  return MessageBytes(call, rows.most, call.model.query_width()) +
         call.ranks * call.model.partial_bytes(rows.own) + call.model.partial_bytes(rows.others);
}

int64_t TokenRingPrefillBytes(const MemoryCall& call) {
  if (call.ranks == 1) return RingStrategy::PositionBytes(call.plan);
  const RowCounts rows(call);
  return MessageBytes(call, rows.most, call.model.query_width()) +
         2 * call.model.partial_bytes(rows.own) + 2 * call.model.partial_bytes(rows.most);
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingKv(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps,
    kernels::Stream& stream) {
  return RingStrategy::Create(documents, deps, RingStrategy::Travels::kKeys, stream);
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateRingQ(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps,
    kernels::Stream& stream) {
  return RingStrategy::Create(documents, deps, RingStrategy::Travels::kQueries, stream);
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateTokenRing(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps,
    kernels::Stream& stream) {
  return RingStrategy::Create(documents, deps, RingStrategy::Travels::kQueriesAndResults, stream);
}

}  // namespace apb::context_parallel
