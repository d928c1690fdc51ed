#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategy.h"
#include "engine/context_parallel/ulysses/ulysses.h"
#include "engine/core/tensor.h"

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

// One object serves one prefill. Its plan has one shard for each rank.
class UlyssesStrategy : public ContextParallelStrategy {
 public:
  static absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> Create(const ShardPlan& plan,
                                                                         const StrategyDeps& deps);

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override;

 private:
  explicit UlyssesStrategy(const StrategyDeps& deps);
  // A rank's heads, [first, first + count).
  struct Heads {
    int64_t first, count;
  };
  Heads QueryHeadsOf(int rank) const { return {rank * query_share_, query_share_}; }
  Heads KvHeadsOf(int rank) const { return {rank * query_share_ / group_, kv_share_}; }
  // Exchanges `mine` (all heads of this rank's tokens, [T, heads, d]) for `all` (this rank's heads
  // of all tokens, [n, share, d]).
  absl::Status ToHeads(const kernels::TensorView& mine,
                       Heads (UlyssesStrategy::*heads_of)(int) const,
                       const kernels::TensorView& all, kernels::Stream& stream);
  // The way back: exchanges `all` [n, share, d] for `mine` [T, heads, d].
  absl::Status ToTokens(const kernels::TensorView& all, const kernels::TensorView& mine,
                        kernels::Stream& stream);

  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const int rank_, ranks_;
  const int64_t group_;                   // query heads per KV head
  const int64_t query_share_, kv_share_;  // heads per rank
  core::Tensor positions_;                // 0, 1, 2, ... n - 1
  std::vector<int64_t> row_begin_;        // first token of each rank
  core::Workspace packed_, q_, k_, v_, out_;
};

UlyssesStrategy::UlyssesStrategy(const StrategyDeps& deps)
    : backend_(deps.backend),
      communicator_(deps.communicator),
      rank_(communicator_.rank()),
      ranks_(communicator_.size()),
      group_(deps.query_heads / deps.kv_heads),
      query_share_(deps.query_heads / ranks_),
      kv_share_(std::max<int64_t>(1, deps.kv_heads / ranks_)),
      packed_(backend_),
      q_(backend_),
      k_(backend_),
      v_(backend_),
      out_(backend_) {}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> UlyssesStrategy::Create(
    const ShardPlan& plan, const StrategyDeps& deps) {
  std::unique_ptr<UlyssesStrategy> strategy(new UlyssesStrategy(deps));
  int64_t count = 0;
  for (const HostShard& host : plan.hosts) {
    strategy->row_begin_.push_back(count);
    count += host.local_length();
  }
  strategy->row_begin_.push_back(count);
  std::vector<int32_t> positions(count);
  std::iota(positions.begin(), positions.end(), 0);
  APB_ASSIGN_OR_RETURN(
      strategy->positions_,
      core::Tensor::CopyOf(deps.backend,
                           TensorView::Contiguous(positions.data(), DType::kI32, {count})));
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

}  // namespace

int64_t UlyssesPrefillBytes(const MemoryCall& call) {
  const ModelShape& m = call.model;
  const int64_t tokens = call.plan.document_length(),
                rows = call.plan.hosts[call.rank].local_length(),
                query_share = m.query_heads / call.ranks,
                kv_share = std::max<int64_t>(1, m.kv_heads / call.ranks);
  const int64_t packed = call.ranks > 1 ? rows * std::max(query_share, kv_share) : 0;
  return tokens * 4 +
         (tokens * 2 * (query_share + kv_share) + packed) * m.head_dim * m.element_bytes;
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateUlysses(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream&) {
  APB_RETURN_IF_ERROR(UlyssesSupports({.query_heads = deps.query_heads, .kv_heads = deps.kv_heads},
                                      deps.communicator.size()));
  return UlyssesStrategy::Create(*documents[0].plan, deps);
}

}  // namespace apb::context_parallel
