#include "engine/context_parallel/apb/attend.h"

#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/context_parallel/apb/apb.h"
#include "engine/context_parallel/partial_results.h"

namespace apb::context_parallel {

using kernels::DType;
using kernels::KeySegment;
using kernels::TensorView;
using kernels::Visibility;

namespace {

constexpr int kPoolWindow = 5;
constexpr int64_t kPoolReach = kPoolWindow / 2;

// The embedded query's rows within the plan's anchor: [begin, end).
TokenSpan EmbeddedQueryRows(const ShardPlan& plan) {
  const auto is_query = [](const AnchorSource& source) { return source.in_query; };
  const auto begin = std::find_if(plan.anchor.begin(), plan.anchor.end(), is_query);
  const auto end = std::find_if_not(begin, plan.anchor.end(), is_query);
  return {begin - plan.anchor.begin(), end - plan.anchor.begin()};
}

// The number of rows that a host scores: its own, and the anchor's last rows, which the max-pool of
// its first rows reads.
int64_t ScoredRows(const ShardPlan& plan, const HostShard& host) {
  return host.local_length() +
         (host.sees_anchor ? std::min<int64_t>(kPoolReach, std::ssize(plan.anchor)) : 0);
}

}  // namespace

AnchorStrategy::AnchorStrategy(const ShardPlan& plan, int64_t kv_heads,
                               std::unique_ptr<Compressor> compressor, kernels::Backend& backend,
                               comm::Communicator& communicator, bool overlap)
    : plan_(plan),
      kv_heads_(kv_heads),
      compressor_(std::move(compressor)),
      backend_(backend),
      communicator_(communicator),
      overlap_(overlap),
      raw_(backend),
      indices_(backend),
      send_(backend),
      passing_(backend),
      partials_(backend) {
  for (const HostShard& host : plan.hosts)
    longest_passing_ = std::max(longest_passing_, host.passing_length);
}

bool AnchorStrategy::WantsPreRope(int) const {
  return longest_passing_ > 0 && compressor_->UsesPreRope();
}

absl::StatusOr<TensorView> AnchorStrategy::PooledScores(const LayerCall& call, const HostRows& rows,
                                                        const TensorView& qkv,
                                                        core::Workspace& keep,
                                                        kernels::Stream& stream) {
  // The pool's window crosses the border between anchor and local rows.
  const int64_t tail = compressor_->Pools() && plan_.hosts[rows.host].sees_anchor
                           ? std::min(kPoolReach, call.anchor_rows)
                           : 0;
  const int64_t local = rows.end - rows.begin;
  APB_ASSIGN_OR_RETURN(const TensorView raw, raw_.Get(DType::kF32, {tail + local, kv_heads_}));
  const auto score = [&](int64_t begin, int64_t end, int64_t first_token, const TensorView& out) {
    ScoreCall request{.layer = call.layer, .first_token = first_token, .scores = out};
    if (compressor_->UsesPreRope()) {
      request.qkv = qkv.Rows(begin, end);
    } else {
      request.k = call.k.Rows(begin, end);
      const TokenSpan query = call.anchor_rows > 0 ? EmbeddedQueryRows(plan_) : TokenSpan();
      request.query = call.q.Rows(query.begin, query.end);
    }
    return compressor_->Score(request, stream);
  };
  if (tail > 0) {
    APB_RETURN_IF_ERROR(score(call.anchor_rows - tail, call.anchor_rows, -1, raw.Rows(0, tail)));
  }
  APB_RETURN_IF_ERROR(score(rows.begin, rows.end, plan_.hosts[rows.host].local[0].begin,
                            raw.Rows(tail, tail + local)));
  APB_ASSIGN_OR_RETURN(const TensorView pooled, keep.Get(DType::kF32, {tail + local, kv_heads_}));
  if (compressor_->Pools()) {
    backend_.MaxPoolRows(raw, kPoolWindow, pooled, stream);
  } else {
    backend_.Copy(raw, pooled, stream);
  }
  return pooled.Rows(tail, tail + local);
}

absl::Status AnchorStrategy::BeforeRope(const LayerCall& call, const TensorView& qkv,
                                        kernels::Stream& stream) {
  while (scores_.size() < call.hosts.size()) scores_.emplace_back(backend_);
  score_views_.assign(call.hosts.size(), TensorView());
  for (size_t i = 0; i < call.hosts.size(); ++i) {
    if (plan_.hosts[call.hosts[i].host].passing_length == 0) continue;
    APB_ASSIGN_OR_RETURN(score_views_[i],
                         PooledScores(call, call.hosts[i], qkv, scores_[i], stream));
  }
  return absl::OkStatus();
}

TensorView AnchorStrategy::Contribution(int host, int part) const {
  // The AllGather puts the ranks' parts in rank order, and each part holds the rank's hosts in
  // order; so the parts are in host order.
  const int64_t kv_heads = passing_view_.shape[2], d = passing_view_.shape[3];
  TensorView view = passing_view_.Rows((host * 2 + part) * longest_passing_,
                                       (host * 2 + part + 1) * longest_passing_);
  view.rank = 3;
  view.shape = {plan_.hosts[host].passing_length, kv_heads, d, 0};
  view.stride = {kv_heads * d, d, 1, 0};
  return view;
}

absl::StatusOr<TensorView> AnchorStrategy::Select(const LayerCall& call, kernels::Stream& stream) {
  const int64_t kv_heads = call.k.shape[1], d = call.k.shape[2];
  const int64_t per_rank = static_cast<int64_t>(plan_.hosts.size()) / communicator_.size();
  if (!compressor_->UsesPreRope()) APB_RETURN_IF_ERROR(BeforeRope(call, {}, stream));
  APB_ASSIGN_OR_RETURN(TensorView send,
                       send_.Get(call.k.dtype, {per_rank * 2 * longest_passing_, 1, kv_heads, d}));
  for (size_t i = 0; i < call.hosts.size(); ++i) {
    const HostRows& rows = call.hosts[i];
    const HostShard& host = plan_.hosts[rows.host];
    const int64_t count = host.passing_length, slot = rows.host % per_rank;
    if (count == 0) continue;
    const int64_t first = host.local[0].begin;
    APB_ASSIGN_OR_RETURN(const TensorView indices, indices_.Get(DType::kI32, {kv_heads, count}));
    backend_.TopKPerHead({.scores = score_views_[i],
                          .eligible_begin = host.passing_candidates.begin - first,
                          .eligible_end = host.passing_candidates.end - first,
                          .count = count,
                          .indices = indices},
                         stream);
    for (int part = 0; part < 2; ++part) {
      TensorView target = send.Rows((slot * 2 + part) * longest_passing_,
                                    (slot * 2 + part) * longest_passing_ + count);
      target.rank = 3;
      target.shape = {count, kv_heads, d, 0};
      target.stride = {kv_heads * d, d, 1, 0};
      const TensorView from = (part == 0 ? call.k : call.v).Rows(rows.begin, rows.end);
      backend_.Run(kernels::GatherRowsPerHeadArgs{from, indices, target}, stream);
    }
  }
  return send;
}

absl::StatusOr<std::unique_ptr<comm::Pending>> AnchorStrategy::StartExchange(
    const LayerCall& call, kernels::Stream& stream) {
  const int64_t start = stream.Mark();
  APB_ASSIGN_OR_RETURN(const TensorView send, Select(call, stream));
  stream.AddSeconds(start, stream.Mark(), &compress_seconds_);
  if (communicator_.size() == 1) {
    passing_view_ = send;
    return nullptr;
  }
  APB_ASSIGN_OR_RETURN(passing_view_,
                       passing_.Get(call.k.dtype, {communicator_.size() * send.rows(), 1,
                                                   call.k.shape[1], call.k.shape[2]}));
  return communicator_.StartAllGather(send, passing_view_, stream);
}

std::vector<KeySegment> AnchorStrategy::PassingSegments(int host) const {
  std::vector<KeySegment> segments;
  for (int earlier = 0; earlier < host; ++earlier) {
    if (plan_.hosts[earlier].passing_length == 0) continue;
    segments.push_back({.k = Contribution(earlier, 0),
                        .v = Contribution(earlier, 1),
                        .visible_to_group = {Visibility::kAll, Visibility::kAll}});
  }
  return segments;
}

std::vector<KeySegment> AnchorStrategy::OwnSegments(const LayerCall& call,
                                                    const HostRows& rows) const {
  std::vector<KeySegment> segments;
  if (plan_.hosts[rows.host].sees_anchor) {
    segments.push_back({.k = call.k.Rows(0, call.anchor_rows),
                        .v = call.v.Rows(0, call.anchor_rows),
                        .visible_to_group = {Visibility::kAll, Visibility::kAll}});
  }
  segments.push_back({.k = call.k.Rows(rows.begin, rows.end),
                      .v = call.v.Rows(rows.begin, rows.end),
                      .positions = call.positions.Rows(rows.begin, rows.end)});
  return segments;
}

// Anchor rows see the anchor causally and nothing else.
void AnchorStrategy::AttendAnchor(const LayerCall& call, kernels::Stream& stream) {
  if (call.anchor_rows == 0) return;
  const TensorView positions = call.positions.Rows(0, call.anchor_rows);
  const KeySegment anchor{.k = call.k.Rows(0, call.anchor_rows),
                          .v = call.v.Rows(0, call.anchor_rows),
                          .positions = positions};
  backend_.Attention({.q = call.q.Rows(0, call.anchor_rows),
                      .q_positions = positions,
                      .keys = {&anchor, 1},
                      .scale = call.scale,
                      .out = call.out.Rows(0, call.anchor_rows)},
                     stream);
}

void AnchorStrategy::AttendRows(const LayerCall& call, const HostRows& rows,
                                std::span<const KeySegment> keys, const TensorView& out,
                                const TensorView& lse, kernels::Stream& stream) {
  backend_.Attention({.q = call.q.Rows(rows.begin, rows.end),
                      .q_positions = call.positions.Rows(rows.begin, rows.end),
                      .keys = keys,
                      .scale = call.scale,
                      .out = out,
                      .lse = lse},
                     stream);
}

absl::Status AnchorStrategy::Attend(const LayerCall& call, kernels::Stream& stream) {
  // All ranks take part in the exchange, even one without tokens.
  std::unique_ptr<comm::Pending> exchange;
  if (longest_passing_ > 0) {
    APB_ASSIGN_OR_RETURN(exchange, StartExchange(call, stream));
  }
  if (exchange != nullptr && overlap_) {
    return AttendOverlapped(call, *exchange, stream);
  }
  if (exchange != nullptr) APB_RETURN_IF_ERROR(exchange->Wait(stream));
  AttendAnchor(call, stream);
  for (const HostRows& rows : call.hosts) {
    if (rows.end == rows.begin) continue;
    std::vector<KeySegment> keys =
        longest_passing_ > 0 ? PassingSegments(rows.host) : std::vector<KeySegment>();
    for (const KeySegment& segment : OwnSegments(call, rows)) keys.push_back(segment);
    AttendRows(call, rows, keys, call.out.Rows(rows.begin, rows.end), {}, stream);
  }
  return absl::OkStatus();
}

absl::Status AnchorStrategy::AttendOverlapped(const LayerCall& call, comm::Pending& exchange,
                                              kernels::Stream& stream) {
  // A host after the first one that passes something on. A rank's last hosts are such ones, so
  // their rows are [begin, end).
  const auto has_passing = [&](const HostRows& rows) {
    for (int earlier = 0; earlier < rows.host; ++earlier) {
      if (plan_.hosts[earlier].passing_length > 0) return rows.end > rows.begin;
    }
    return false;
  };
  const int64_t end = call.hosts.back().end;
  int64_t begin = end;
  for (const HostRows& rows : call.hosts) {
    if (has_passing(rows)) begin = std::min(begin, rows.begin);
  }
  const int64_t heads = call.q.shape[1], d = call.q.shape[2];
  APB_ASSIGN_OR_RETURN(const PartialResults parts,
                       PartialResults::In(partials_, 2, end - begin, heads, d));
  AttendAnchor(call, stream);
  for (const HostRows& rows : call.hosts) {
    if (rows.end == rows.begin) continue;
    const bool part = has_passing(rows);
    const int64_t first = rows.begin - begin, last = rows.end - begin;
    AttendRows(call, rows, OwnSegments(call, rows),
               part ? parts.Out(0).Rows(first, last) : call.out.Rows(rows.begin, rows.end),
               part ? parts.Lse(0).Rows(first, last) : TensorView(), stream);
  }
  APB_RETURN_IF_ERROR(exchange.Wait(stream));
  for (const HostRows& rows : call.hosts) {
    if (!has_passing(rows)) continue;
    const int64_t first = rows.begin - begin, last = rows.end - begin;
    AttendRows(call, rows, PassingSegments(rows.host), parts.Out(1).Rows(first, last),
               parts.Lse(1).Rows(first, last), stream);
  }
  if (end > begin)
    backend_.MergePartials(parts.Outs(), parts.Lses(), call.out.Rows(begin, end), {}, stream);
  return absl::OkStatus();
}

bool NeedsAnchor(const ShardPlan& plan, int ranks, int rank, std::string_view compressor) {
  const HostRange range = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  for (int h = range.first; h < range.last; ++h) {
    if (plan.hosts[h].sees_anchor) return true;
    if (plan.hosts[h].passing_length > 0 && UsesQuery(compressor)) return !plan.anchor.empty();
  }
  return false;
}

int64_t AnchorPrefillBytes(const MemoryCall& call) {
  const ShardPlan& plan = call.plan;
  const ModelShape& m = call.model;
  const HostRange hosts = HostsOfRank(static_cast<int>(plan.hosts.size()), call.ranks, call.rank);
  int64_t longest = 0, scored = 0, scores = 0, indices = 0, behind_passing = 0;
  bool passed = false;
  for (int h = 0; h < hosts.last; ++h) {
    const HostShard& host = plan.hosts[h];
    if (h >= hosts.first && host.passing_length > 0) {
      const int64_t rows = ScoredRows(plan, host);
      scored = std::max(scored, rows);
      scores += rows;
      indices = std::max(indices, host.passing_length);
    }
    if (h >= hosts.first && passed) behind_passing += host.local_length();
    passed |= host.passing_length > 0;
  }
  for (const HostShard& host : plan.hosts) longest = std::max(longest, host.passing_length);
  if (longest == 0) return 0;
  const int64_t sent = static_cast<int64_t>(plan.hosts.size()) / call.ranks * longest *
                       m.kv_width() * m.element_bytes;
  int64_t bytes = (scored + scores + indices) * m.kv_heads * 4 + sent +
                  CompressorBytes(call.compressor, scored, m);
  if (call.ranks > 1) bytes += call.ranks * sent;
  if (call.ranks > 1 && call.overlap_passing) bytes += 2 * m.partial_bytes(behind_passing);
  return bytes;
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateAnchorStrategy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream&) {
  std::unique_ptr<Compressor> compressor;
  if (!deps.compressor.empty()) {
    APB_ASSIGN_OR_RETURN(
        compressor, CreateCompressor(deps.compressor, *deps.weights, deps.backend, deps.tensor));
  }
  return std::make_unique<AnchorStrategy>(*documents[0].plan, deps.kv_heads, std::move(compressor),
                                          deps.backend, deps.communicator, deps.overlap_passing);
}

}  // namespace apb::context_parallel
