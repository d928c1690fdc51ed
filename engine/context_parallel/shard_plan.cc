#include "engine/context_parallel/shard_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::context_parallel {
namespace {

constexpr int kMaxHosts = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 30;  // positions are 32 bits wide

absl::Status CheckLayout(const PromptLayout& layout) {
  if (layout.document_length < 0 || layout.document_length > kMaxTokens ||
      layout.embedded_query_length < 0 || layout.embedded_query_length > kMaxTokens ||
      layout.query_insert_position < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("document of ", layout.document_length, " tokens with an embedded query of ",
                     layout.embedded_query_length, " at ", layout.query_insert_position));
  }
  if (layout.cached_length < 0 || layout.cached_length > layout.document_length) {
    return absl::InvalidArgumentError(absl::StrCat(layout.cached_length, " cached tokens of ",
                                                   layout.document_length, " document tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const StrategyOptions& options) {
  if (options.hosts < 1 || options.hosts > kMaxHosts) {
    return absl::InvalidArgumentError(
        absl::StrCat("hosts=", options.hosts, ": must be from 1 to ", kMaxHosts));
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
  return absl::OkStatus();
}

}  // namespace

int64_t ShardPlan::document_length() const {
  int64_t n = 0;
  for (const HostShard& host : hosts) n += host.local_length();
  return n;
}

std::string ShardPlan::DebugString() const {
  std::string text = absl::StrCat("anchor=", anchor.size());
  for (size_t h = 0; h < hosts.size(); ++h) {
    absl::StrAppend(&text, " host", h, "=");
    for (const TokenSpan& span : hosts[h].local)
      absl::StrAppend(&text, "[", span.begin, ",", span.end, ")");
    absl::StrAppend(&text, hosts[h].sees_anchor ? "+anchor" : "", " passes ",
                    hosts[h].passing_length);
  }
  return text;
}

HostRange HostsOfRank(int hosts, int ranks, int rank) {
  // With fewer hosts than ranks, the last ranks play no host.
  if (hosts < ranks) return rank < hosts ? HostRange{rank, rank + 1} : HostRange{hosts, hosts};
  return {static_cast<int>(static_cast<int64_t>(rank) * hosts / ranks),
          static_cast<int>(static_cast<int64_t>(rank + 1) * hosts / ranks)};
}

absl::StatusOr<ShardPlan> MakeShardPlan(const StrategyInfo& strategy, const PromptLayout& layout,
                                        const StrategyOptions& options) {
  APB_RETURN_IF_ERROR(CheckOptions(options));
  APB_RETURN_IF_ERROR(CheckLayout(layout));
  if (layout.cached_length > 0 && !strategy.starts_from_prefix) {
    return absl::InvalidArgumentError(absl::StrCat("strategy '", std::string(strategy.name),
                                                   "' cannot start from a cached prefix"));
  }
  ShardPlan plan = strategy.plan(layout, options);
  plan.strategy = &strategy;
  return plan;
}

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

ShardPlan EqualBlocks(int64_t n, int hosts) {
  const int64_t block = (n + hosts - 1) / hosts;
  std::vector<int64_t> lengths;
  for (int h = 0; h < hosts; ++h) lengths.push_back(std::clamp<int64_t>(n - h * block, 0, block));
  return Blocks(lengths);
}

absl::Status CheckRanks(const ShardPlan& plan, int ranks) {
  const int hosts = static_cast<int>(plan.hosts.size());
  if (plan.strategy->hosts == HostsRule::kOneOnEachRank) {
    if (hosts == ranks) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("hosts=", hosts, ": strategy '",
                                                   std::string(plan.strategy->name),
                                                   "' has one on each of the ", ranks, " ranks"));
  }
  if (hosts == 1 || hosts % ranks == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "hosts=", hosts, ": must be 1 or a multiple of the ", ranks, " ranks of the group"));
}

int64_t DocumentTokensOfRank(const ShardPlan& plan, int ranks, int rank) {
  const HostRange range = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  int64_t n = 0;
  for (int h = range.first; h < range.last; ++h) n += plan.hosts[h].local_length();
  return n;
}

}  // namespace apb::context_parallel
