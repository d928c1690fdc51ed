#include "engine/schedule/auto_strategy.h"

#include <vector>

#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"

namespace apb::schedule {

using context_parallel::HostsRule;
using context_parallel::StrategyInfo;

namespace {

// A later candidate must save this much of the time of the best before it: predictions are rough,
// and small differences should not decide.
constexpr double kSavedShare = 0.1, kSavedSeconds = 1e-3;

bool Fits(const SchedulerOptions& options, const context_parallel::ShardPlan& plan) {
  const int64_t room = options.blocks_per_rank * options.block_size;
  for (int rank = 0; rank < options.ranks; ++rank) {
    if (context_parallel::DocumentTokensOfRank(plan, options.ranks, rank) >= room) return false;
  }
  return true;
}

// The fastest of `candidates` for tokens [cached, length). If none fits, the first exact strategy
// with a host on each rank, whose refusal tells the client what is missing.
std::string Fastest(const SchedulerOptions& options,
                    const std::vector<const StrategyInfo*>& candidates, int64_t cached,
                    int64_t length) {
  const StrategyInfo* best = &FirstExact(HostsRule::kOneOnEachRank);
  double seconds = -1;
  for (const StrategyInfo* candidate : candidates) {
    if (!candidate->supports(options.model, options.ranks).ok()) continue;
    const auto plan = context_parallel::MakeShardPlan(
        *candidate, {.document_length = length, .cached_length = cached, .query_length = 1},
        {.hosts = options.ranks});
    if (!plan.ok() || !Fits(options, *plan)) continue;
    const double predicted =
        context_parallel::PredictPrefill(*plan, options.ranks, cached, options.model, options.speed)
            .seconds;
    const double saved = seconds - predicted;
    if (seconds >= 0 && (saved < seconds * kSavedShare || saved < kSavedSeconds)) continue;
    best = candidate;
    seconds = predicted;
  }
  return std::string(best->name);
}

}  // namespace

bool ReadsPrefixOnAllRanks(const StrategyInfo& strategy) {
  return strategy.starts_from_prefix && strategy.hosts == HostsRule::kOneOnEachRank;
}

std::string FastestExact(const SchedulerOptions& options, int64_t document_length) {
  const bool one_rank = options.ranks == 1 || document_length < options.ring_from;
  if (one_rank || options.ring_from >= 0) {
    return std::string(FirstExact(one_rank ? HostsRule::kOne : HostsRule::kOneOnEachRank).name);
  }
  return Fastest(options, context_parallel::AutoCandidates(/*exact=*/true), 0, document_length);
}

std::string FastestOverPrefix(const SchedulerOptions& options, int64_t cached, int64_t length) {
  if (options.ranks == 1) return std::string(FirstExact(HostsRule::kOne).name);
  std::vector<const StrategyInfo*> candidates = context_parallel::AutoCandidates(/*exact=*/true);
  std::erase_if(candidates, [](const StrategyInfo* info) { return !ReadsPrefixOnAllRanks(*info); });
  return Fastest(options, candidates, cached, length);
}

std::string ChooseStrategy(const SchedulerOptions& options, const Request& request) {
  const SequenceSpec& spec = request.spec;
  const context_parallel::StrategyOptions& asked = spec.strategy_options;
  const int hosts = asked.hosts == 0 ? options.default_hosts : asked.hosts;
  const bool can_select =
      options.has_retaining_heads || !spec.embedded_query.empty() || !asked.compressor.empty();
  const auto approximate = context_parallel::AutoCandidates(/*exact=*/false);
  if (!request.exact && hosts > 1 && spec.query_begin >= options.full_below && can_select &&
      !approximate.empty()) {
    return std::string(approximate.front()->name);
  }
  return FastestExact(options, spec.query_begin);
}

}  // namespace apb::schedule
