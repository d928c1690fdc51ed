#include "engine/context_parallel/strategies.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/context_parallel/apb/apb.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/full/full.h"
#include "engine/context_parallel/ring/ring.h"
#include "engine/context_parallel/star/star.h"
#include "engine/context_parallel/ulysses/ulysses.h"

namespace apb::context_parallel {
namespace {

constexpr StrategyInfo kRows[] = {
    {.name = "full",
     .exact = true,
     .hosts = HostsRule::kOne,
     .can_batch = true,
     .starts_from_prefix = true,
     .auto_order = 1,
     .plan = FullPlan,
     .work = CausalWork,
     .prefill_bytes = FullPrefillBytes,
     .create = CreateFull},
    {.name = "apb",
     .can_balance = true,
     .auto_order = 1,
     .plan = ApbPlan,
     .needs_anchor = NeedsAnchor,
     .work = AnchorWork,
     .traffic = PassingTraffic,
     .prefill_bytes = AnchorPrefillBytes,
     .create = CreateAnchorStrategy},
    {.name = "star",
     .plan = StarPlan,
     .needs_anchor = NeedsAnchor,
     .work = AnchorWork,
     .prefill_bytes = AnchorPrefillBytes,
     .create = CreateAnchorStrategy},
    {.name = "ring_kv",
     .exact = true,
     .hosts = HostsRule::kOneOnEachRank,
     .can_batch = true,
     .starts_from_prefix = true,
     .auto_order = 2,
     .plan = ZigzagPlan,
     .work = CausalWork,
     .traffic = RingKvTraffic,
     .prefill_bytes = RingKvPrefillBytes,
     .create = CreateRingKv},
    {.name = "ring_q",
     .exact = true,
     .hosts = HostsRule::kOneOnEachRank,
     .can_batch = true,
     .starts_from_prefix = true,
     .auto_order = 5,
     .plan = ZigzagPlan,
     .work = CausalWork,
     .traffic = RingQTraffic,
     .prefill_bytes = RingQPrefillBytes,
     .create = CreateRingQ},
    {.name = "token_ring",
     .exact = true,
     .hosts = HostsRule::kOneOnEachRank,
     .can_batch = true,
     .starts_from_prefix = true,
     .auto_order = 4,
     .plan = ZigzagPlan,
     .work = CausalWork,
     .traffic = TokenRingTraffic,
     .prefill_bytes = TokenRingPrefillBytes,
     .create = CreateTokenRing},
    {.name = "ulysses",
     .exact = true,
     .hosts = HostsRule::kOneOnEachRank,
     .auto_order = 3,
     .supports = UlyssesSupports,
     .plan = UlyssesPlan,
     .work = UlyssesWork,
     .traffic = UlyssesTraffic,
     .prefill_bytes = UlyssesPrefillBytes,
     .create = CreateUlysses},
};

}  // namespace

// Not in strategies.h: only tests change the table (tests/engine/context_parallel/add_strategy.h).
std::vector<const StrategyInfo*>& StrategyTable() {
  static std::vector<const StrategyInfo*>& table = *[] {
    auto* rows = new std::vector<const StrategyInfo*>;
    for (const StrategyInfo& row : kRows) rows->push_back(&row);
    return rows;
  }();
  return table;
}

std::span<const StrategyInfo* const> Strategies() { return StrategyTable(); }

const StrategyInfo* FindStrategy(std::string_view name) {
  for (const StrategyInfo* info : StrategyTable()) {
    if (info->name == name) return info;
  }
  return nullptr;
}

absl::Status UnknownStrategy(std::string_view name) {
  const auto name_of = [](std::string* out, const StrategyInfo* info) { out->append(info->name); };
  return absl::InvalidArgumentError(absl::StrCat("strategy '", std::string(name), "' is unknown (",
                                                 absl::StrJoin(StrategyTable(), ", ", name_of),
                                                 " are known)"));
}

std::vector<const StrategyInfo*> AutoCandidates(bool exact) {
  std::vector<const StrategyInfo*> candidates;
  for (const StrategyInfo* info : StrategyTable()) {
    if (info->exact == exact && info->auto_order > 0) candidates.push_back(info);
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto* a, const auto* b) { return a->auto_order < b->auto_order; });
  return candidates;
}

const StrategyInfo& FirstExact(HostsRule hosts) {
  const std::vector<const StrategyInfo*> candidates = AutoCandidates(/*exact=*/true);
  const auto found = std::find_if(candidates.begin(), candidates.end(),
                                  [&](const auto* info) { return info->hosts == hosts; });
  APB_CHECK(found != candidates.end());
  return **found;
}

absl::StatusOr<ShardPlan> MakeShardPlan(std::string_view strategy, const PromptLayout& layout,
                                        const StrategyOptions& options) {
  const StrategyInfo* info = FindStrategy(strategy);
  if (info == nullptr) return UnknownStrategy(strategy);
  return MakeShardPlan(*info, layout, options);
}

}  // namespace apb::context_parallel
