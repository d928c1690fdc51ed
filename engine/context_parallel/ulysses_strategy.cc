#include "engine/context_parallel/ulysses_strategy.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategy_plan.h"

namespace apb::context_parallel {

using kernels::DType;
using kernels::TensorView;

namespace {

// Heads [first, first + count) of [T, heads, d].
TensorView HeadRange(const TensorView& x, int64_t first, int64_t count) {
  TensorView view = x;
  view.data =
      static_cast<std::byte*>(x.data) + first * x.stride[1] * static_cast<int64_t>(SizeOf(x.dtype));
  view.shape[1] = count;
  return view;
}

}  // namespace

UlyssesStrategy::UlyssesStrategy(int64_t query_heads, int64_t kv_heads, kernels::Backend& backend,
                                 comm::Communicator& communicator)
    : backend_(backend),
      communicator_(communicator),
      rank_(communicator.rank()),
      ranks_(communicator.size()),
      group_(query_heads / kv_heads),
      query_share_(query_heads / ranks_),
      kv_share_(std::max<int64_t>(1, kv_heads / ranks_)),
      packed_(backend),
      q_(backend),
      k_(backend),
      v_(backend),
      out_(backend) {}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> UlyssesStrategy::Create(
    const ShardPlan& plan, int64_t query_heads, int64_t kv_heads, kernels::Backend& backend,
    comm::Communicator& communicator) {
  const int64_t ranks = communicator.size();
  if (!UlyssesFits(query_heads, kv_heads, ranks)) {
    return absl::InvalidArgumentError(
        absl::StrCat("strategy 'ulysses': ", query_heads, " query and ", kv_heads,
                     " KV heads do not divide among ", ranks, " ranks"));
  }
  std::unique_ptr<UlyssesStrategy> strategy(
      new UlyssesStrategy(query_heads, kv_heads, backend, communicator));
  int64_t count = 0;
  for (const HostShard& host : plan.hosts) {
    strategy->row_begin_.push_back(count);
    count += host.local_length();
  }
  strategy->row_begin_.push_back(count);
  std::vector<int32_t> positions(count);
  std::iota(positions.begin(), positions.end(), 0);
  APB_ASSIGN_OR_RETURN(strategy->positions_,
                       core::Tensor::CopyOf(backend, TensorView::Contiguous(positions.data(),
                                                                            DType::kI32, {count})));
  return std::unique_ptr<ContextParallelStrategy>(std::move(strategy));
}

absl::Status UlyssesStrategy::BeforeRope(const LayerCall&, const TensorView&, kernels::Stream&) {
  return absl::InternalError("ulysses does not read projections before RoPE");
}

absl::Status UlyssesStrategy::ToHeads(const TensorView& mine,
                                      Heads (UlyssesStrategy::*heads_of)(int) const,
                                      const TensorView& all, kernels::Stream& stream) {
  const int64_t rows = mine.shape[0], d = mine.shape[2];
  const Heads own = (this->*heads_of)(rank_);
  backend_.Copy(HeadRange(mine, own.first, own.count),
                all.Rows(row_begin_[rank_], row_begin_[rank_ + 1]), stream);
  for (int distance = 1; distance < ranks_; ++distance) {
    const int target = (rank_ + distance) % ranks_, source = (rank_ - distance + ranks_) % ranks_;
    const Heads theirs = (this->*heads_of)(target);
    APB_ASSIGN_OR_RETURN(const TensorView packed, packed_.Get(mine.dtype, {rows, theirs.count, d}));
    backend_.Copy(HeadRange(mine, theirs.first, theirs.count), packed, stream);
    APB_RETURN_IF_ERROR(communicator_.SendRecv(
        packed, target, all.Rows(row_begin_[source], row_begin_[source + 1]), source, stream));
  }
  return absl::OkStatus();
}

absl::Status UlyssesStrategy::ToTokens(const TensorView& all, const TensorView& mine,
                                       kernels::Stream& stream) {
  const int64_t rows = mine.shape[0], d = mine.shape[2];
  const Heads own = QueryHeadsOf(rank_);
  backend_.Copy(all.Rows(row_begin_[rank_], row_begin_[rank_ + 1]),
                HeadRange(mine, own.first, own.count), stream);
  for (int distance = 1; distance < ranks_; ++distance) {
    const int target = (rank_ + distance) % ranks_, source = (rank_ - distance + ranks_) % ranks_;
    const Heads theirs = QueryHeadsOf(source);
    APB_ASSIGN_OR_RETURN(const TensorView packed, packed_.Get(mine.dtype, {rows, theirs.count, d}));
    APB_RETURN_IF_ERROR(communicator_.SendRecv(all.Rows(row_begin_[target], row_begin_[target + 1]),
                                               target, packed, source, stream));
    backend_.Copy(packed, HeadRange(mine, theirs.first, theirs.count), stream);
  }
  return absl::OkStatus();
}

absl::Status UlyssesStrategy::Attend(const LayerCall& call, kernels::Stream& stream) {
  const int64_t count = row_begin_.back(), d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(const TensorView q, q_.Get(call.q.dtype, {count, query_share_, d}));
  APB_ASSIGN_OR_RETURN(const TensorView k, k_.Get(call.k.dtype, {count, kv_share_, d}));
  APB_ASSIGN_OR_RETURN(const TensorView v, v_.Get(call.v.dtype, {count, kv_share_, d}));
  APB_ASSIGN_OR_RETURN(const TensorView out, out_.Get(call.out.dtype, {count, query_share_, d}));
  APB_RETURN_IF_ERROR(ToHeads(call.q, &UlyssesStrategy::QueryHeadsOf, q, stream));
  APB_RETURN_IF_ERROR(ToHeads(call.k, &UlyssesStrategy::KvHeadsOf, k, stream));
  APB_RETURN_IF_ERROR(ToHeads(call.v, &UlyssesStrategy::KvHeadsOf, v, stream));
  const kernels::KeySegment segment{.k = k, .v = v, .positions = positions_.view()};
  backend_.Attention({.q = q,
                      .q_positions = positions_.view(),
                      .keys = {&segment, 1},
                      .scale = call.scale,
                      .out = out},
                     stream);
  return ToTokens(out, call.out, stream);
}

}  // namespace apb::context_parallel
