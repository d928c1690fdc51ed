#include "engine/context_parallel/strategy_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/context_parallel/balanced_shards.h"

namespace apb::context_parallel {
namespace {

constexpr int kMaxHosts = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 30;  // positions are 32 bits wide
constexpr int64_t kMaxDefaultLength = 8192;

int64_t BlockLength(int64_t n, int hosts) { return (n + hosts - 1) / hosts; }

// One block for each host, behind each other; empty ones are left out.
ShardPlan Blocks(const std::vector<int64_t>& lengths) {
  ShardPlan plan;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    HostShard shard;
    if (length > 0) shard.local.push_back({begin, begin + length});
    plan.hosts.push_back(shard);
    begin += length;
  }
  return plan;
}

// Blocks of ceil(n / hosts); the last ones may be shorter or empty.
ShardPlan EqualBlocks(int64_t n, int hosts) {
  const int64_t block = BlockLength(n, hosts);
  std::vector<int64_t> lengths;
  for (int h = 0; h < hosts; ++h) lengths.push_back(std::clamp<int64_t>(n - h * block, 0, block));
  return Blocks(lengths);
}

// Hosts after the first that have tokens see the anchor. Without such a host there is no anchor.
void ShowAnchor(ShardPlan& plan) {
  bool anyone = false;
  for (size_t h = 1; h < plan.hosts.size(); ++h) {
    plan.hosts[h].sees_anchor = !plan.anchor.empty() && plan.hosts[h].local_length() > 0;
    anyone |= plan.hosts[h].sees_anchor;
  }
  if (!anyone) plan.anchor.clear();
}

ShardPlan ApbPlan(const PromptLayout& layout, const StrategyOptions& options) {
  const int64_t block = BlockLength(layout.document_length, options.hosts);
  const int64_t head = std::min(layout.query_insert_position, block);
  int64_t anchor = options.anchor_length;
  if (anchor < 0) {
    anchor = std::min(block / 4, kMaxDefaultLength);
    anchor = std::max(anchor, std::min(head + layout.embedded_query_length, block / 2));
  }
  anchor = std::min(anchor, block);
  const int64_t query = std::min(layout.embedded_query_length, std::max<int64_t>(0, anchor - head));
  const int64_t document_tokens = anchor - query;
  int64_t passing = options.passing_length;
  if (passing < 0) passing = std::min(block / 8, kMaxDefaultLength);

  ShardPlan plan = options.row_cost_pairs == 0
                       ? EqualBlocks(layout.document_length, options.hosts)
                       : Blocks(BalancedShards(layout.document_length, options.hosts, anchor,
                                               std::min(passing, block), options.row_cost_pairs));
  for (int64_t t = 0; t < std::min(head, document_tokens); ++t)
    plan.anchor.push_back(static_cast<AnchorSource>(t));
  for (int64_t i = layout.embedded_query_length - query; i < layout.embedded_query_length; ++i) {
    plan.anchor.push_back(static_cast<AnchorSource>(-1 - i));
  }
  for (int64_t t = head; t < document_tokens; ++t)
    plan.anchor.push_back(static_cast<AnchorSource>(t));
  ShowAnchor(plan);

  // What the last host with tokens would pass on has no reader.
  int last = options.hosts - 1;
  while (last > 0 && plan.hosts[last].local_length() == 0) --last;
  for (int h = 0; h < last; ++h) {
    HostShard& host = plan.hosts[h];
    host.passing_candidates = host.local[0];
    // Everyone has these in the anchor already (docs/algorithms.md, selection).
    if (h == 0 && !plan.anchor.empty())
      host.passing_candidates.begin = std::min(document_tokens, host.local[0].end);
    host.passing_length = std::min(passing, host.passing_candidates.length());
  }
  return plan;
}

ShardPlan ZigzagPlan(int64_t begin, int64_t end, int hosts) {
  const int64_t chunks = int64_t{2} * hosts, chunk = (end - begin + chunks - 1) / chunks;
  ShardPlan plan;
  for (int h = 0; h < hosts; ++h) {
    HostShard shard;
    for (const int64_t c : {int64_t{h}, chunks - 1 - h}) {
      const TokenSpan span{std::min(end, begin + c * chunk),
                           std::min(end, begin + (c + 1) * chunk)};
      if (span.length() > 0) shard.local.push_back(span);
    }
    plan.hosts.push_back(shard);
  }
  return plan;
}

ShardPlan FullPlan(int64_t begin, int64_t end) {
  ShardPlan plan{.hosts = {HostShard()}, .exchange = Exchange::kNone};
  if (end > begin) plan.hosts[0].local.push_back({begin, end});
  return plan;
}

struct ExactStrategy {
  std::string_view name;
  Exchange exchange;
};
constexpr ExactStrategy kExactStrategies[] = {{"ring_kv", Exchange::kRingKv},
                                              {"ring_q", Exchange::kRingQ},
                                              {"token_ring", Exchange::kTokenRing},
                                              {"ulysses", Exchange::kUlysses}};

const ExactStrategy* FindExact(std::string_view name) {
  for (const ExactStrategy& strategy : kExactStrategies) {
    if (strategy.name == name) return &strategy;
  }
  return nullptr;
}

ShardPlan StarPlan(const PromptLayout& layout, const StrategyOptions& options) {
  ShardPlan plan = EqualBlocks(layout.document_length, options.hosts);
  for (int64_t t = 0; t < plan.hosts[0].local_length(); ++t)
    plan.anchor.push_back(static_cast<AnchorSource>(t));
  ShowAnchor(plan);
  return plan;
}

}  // namespace

absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options) {
  if (options.hosts < 1 || options.hosts > kMaxHosts) {
    return absl::InvalidArgumentError(
        absl::StrCat("hosts=", options.hosts, ": must be from 1 to ", kMaxHosts));
  }
  if (layout.document_length < 0 || layout.document_length > kMaxTokens ||
      layout.embedded_query_length < 0 || layout.embedded_query_length > kMaxTokens ||
      layout.query_insert_position < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("document of ", layout.document_length, " tokens with an embedded query of ",
                     layout.embedded_query_length, " at ", layout.query_insert_position));
  }
  if (options.anchor_length < -1 || options.passing_length < -1) {
    return absl::InvalidArgumentError(absl::StrCat("anchor_length=", options.anchor_length,
                                                   " passing_length=", options.passing_length,
                                                   ": must not be negative (-1 = default)"));
  }
  if (options.row_cost_pairs < 0) {
    return absl::InvalidArgumentError(absl::StrCat("row_cost_pairs=", options.row_cost_pairs,
                                                   ": must not be negative (0 = equal blocks)"));
  }
  if (layout.cached_length < 0 || layout.cached_length > layout.document_length) {
    return absl::InvalidArgumentError(absl::StrCat(layout.cached_length, " cached tokens of ",
                                                   layout.document_length, " document tokens"));
  }
  if (layout.cached_length > 0 && !CanBatch(strategy)) {
    return absl::InvalidArgumentError(
        absl::StrCat("strategy '", std::string(strategy),
                     "' cannot start from a cached prefix (full and the rings can)"));
  }
  if (strategy == "full") return FullPlan(layout.cached_length, layout.document_length);
  if (strategy == "apb") return ApbPlan(layout, options);
  if (strategy == "star") return StarPlan(layout, options);
  if (const ExactStrategy* exact = FindExact(strategy)) {
    ShardPlan plan = exact->exchange == Exchange::kUlysses
                         ? EqualBlocks(layout.document_length, options.hosts)
                         : ZigzagPlan(layout.cached_length, layout.document_length, options.hosts);
    plan.exchange = exact->exchange;
    return plan;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "strategy '", std::string(strategy),
      "' is unknown (full, apb, star, ring_kv, ring_q, token_ring, ulysses are known)"));
}

bool IsExact(std::string_view strategy) {
  return strategy == "full" || FindExact(strategy) != nullptr;
}

bool CanBatch(std::string_view strategy) {
  if (strategy == "full") return true;
  const ExactStrategy* exact = FindExact(strategy);
  return exact != nullptr && exact->exchange != Exchange::kUlysses;
}

bool UlyssesFits(int64_t query_heads, int64_t kv_heads, int64_t ranks) {
  return query_heads % ranks == 0 && (kv_heads % ranks == 0 || ranks % kv_heads == 0);
}

bool IsOneHostPerRank(std::string_view strategy) { return FindExact(strategy) != nullptr; }

absl::Status CheckRanks(const ShardPlan& plan, int ranks) {
  if (plan.exchange != Exchange::kAnchor && plan.exchange != Exchange::kNone) {
    if (static_cast<int>(plan.hosts.size()) == ranks) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("hosts=", plan.hosts.size(),
                     ": an exact strategy has one host on each of the ", ranks, " ranks"));
  }
  if (plan.hosts.size() == 1 || plan.hosts.size() % ranks == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("hosts=", plan.hosts.size(),
                                                 ": must be 1 or a multiple of the ", ranks,
                                                 " ranks of the group"));
}

TokenSpan EmbeddedQueryRows(const ShardPlan& plan) {
  const auto is_query = [](AnchorSource source) { return source < 0; };
  const auto begin = std::find_if(plan.anchor.begin(), plan.anchor.end(), is_query);
  const auto end = std::find_if_not(begin, plan.anchor.end(), is_query);
  return {begin - plan.anchor.begin(), end - plan.anchor.begin()};
}

int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank) {
  const HostRange range = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  int64_t n = 0;
  for (int h = range.first; h < range.last; ++h) n += plan.hosts[h].local_length();
  return n;
}

}  // namespace apb::context_parallel
