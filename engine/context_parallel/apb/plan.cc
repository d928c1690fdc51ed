#include <algorithm>

#include "engine/context_parallel/apb/apb.h"
#include "engine/context_parallel/apb/balanced_shards.h"

namespace apb::context_parallel {
namespace {

constexpr int64_t kMaxDefaultLength = 8192;

// The lengths of a plan, in tokens.
struct Lengths {
  int64_t block = 0;    // of a shard, if all are equally long
  int64_t head = 0;     // document tokens before the embedded query in the anchor
  int64_t anchor = 0;   // the embedded query included
  int64_t query = 0;    // of the part (the tail) of the embedded query that fits into the anchor
  int64_t passing = 0;  // before the cut to the number of candidates
};

Lengths LengthsOf(const PromptLayout& layout, const StrategyOptions& options) {
  Lengths lengths;
  lengths.block = (layout.document_length + options.hosts - 1) / options.hosts;
  lengths.head = std::min(layout.query_insert_position, lengths.block);
  lengths.anchor = options.anchor_length;
  if (lengths.anchor < 0) {
    lengths.anchor = std::min(lengths.block / 4, kMaxDefaultLength);
    lengths.anchor = std::max(
        lengths.anchor, std::min(lengths.head + layout.embedded_query_length, lengths.block / 2));
  }
  lengths.anchor = std::min(lengths.anchor, lengths.block);
  lengths.query =
      std::min(layout.embedded_query_length, std::max<int64_t>(0, lengths.anchor - lengths.head));
  lengths.passing = options.passing_length;
  if (lengths.passing < 0) lengths.passing = std::min(lengths.block / 8, kMaxDefaultLength);
  return lengths;
}

// The anchor's rows: document head, embedded query, more document.
std::vector<AnchorSource> Anchor(const Lengths& lengths, int64_t embedded_query_length) {
  const auto document = static_cast<int32_t>(lengths.anchor - lengths.query);
  const auto head = static_cast<int32_t>(lengths.head);
  const auto query_end = static_cast<int32_t>(embedded_query_length);
  std::vector<AnchorSource> anchor;
  for (int32_t t = 0; t < std::min(head, document); ++t) anchor.push_back({.index = t});
  for (int32_t i = query_end - static_cast<int32_t>(lengths.query); i < query_end; ++i)
    anchor.push_back({.in_query = true, .index = i});
  for (int32_t t = head; t < document; ++t) anchor.push_back({.index = t});
  return anchor;
}

}  // namespace

void ShowAnchor(ShardPlan& plan) {
  bool anyone = false;
  for (size_t h = 1; h < plan.hosts.size(); ++h) {
    plan.hosts[h].sees_anchor = !plan.anchor.empty() && plan.hosts[h].local_length() > 0;
    anyone |= plan.hosts[h].sees_anchor;
  }
  if (!anyone) plan.anchor.clear();
}

ShardPlan ApbPlan(const PromptLayout& layout, const StrategyOptions& options) {
  const Lengths lengths = LengthsOf(layout, options);
  ShardPlan plan = options.row_cost_pairs == 0
                       ? EqualBlocks(layout.document_length, options.hosts)
                       : Blocks(BalancedShards(
                             layout.document_length, options.hosts, lengths.anchor,
                             std::min(lengths.passing, lengths.block), options.row_cost_pairs));
  plan.anchor = Anchor(lengths, layout.embedded_query_length);
  ShowAnchor(plan);

  // The last host with tokens passes nothing on, because no host after it would read that.
  int last = options.hosts - 1;
  while (last > 0 && plan.hosts[last].local_length() == 0) --last;
  for (int h = 0; h < last; ++h) {
    HostShard& host = plan.hosts[h];
    host.passing_candidates = host.local[0];
    // The other hosts have the anchor's document tokens already, so host 0 does not pass them on
    // (docs/algorithms.md, selection).
    if (h == 0 && !plan.anchor.empty()) {
      host.passing_candidates.begin = std::min(lengths.anchor - lengths.query, host.local[0].end);
    }
    host.passing_length = std::min(lengths.passing, host.passing_candidates.length());
  }
  return plan;
}

}  // namespace apb::context_parallel
