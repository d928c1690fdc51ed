#include "engine/schedule/auto_strategy.h"

#include <algorithm>

#include "engine/context_parallel/strategy_plan.h"

namespace apb::schedule {
namespace {

// A later one must save this much of the time of the best before it: predictions are rough, and a
// choice should not hang on them where it does not matter.
constexpr double kSavedShare = 0.1, kSavedSeconds = 1e-3;

bool Fits(const SchedulerOptions& options, const context_parallel::ShardPlan& plan) {
  const int64_t room = options.blocks_per_rank * options.block_size;
  for (int rank = 0; rank < options.ranks; ++rank) {
    if (context_parallel::DocumentTokensOfRank(plan, options.ranks, rank) >= room) return false;
  }
  return true;
}

// Of `names` the fastest for tokens [cached, length), ring_kv where none fits: the error names it.
std::string Fastest(const SchedulerOptions& options, std::initializer_list<const char*> names,
                    int64_t cached, int64_t length) {
  std::string best = "ring_kv";
  double seconds = -1;
  for (const char* name : names) {
    const bool divides = context_parallel::UlyssesFits(options.model.query_heads,
                                                       options.model.kv_heads, options.ranks);
    if (std::string_view(name) == "ulysses" && !divides) continue;
    const auto plan = context_parallel::MakeShardPlan(
        name, {.document_length = length, .cached_length = cached, .query_length = 1},
        {.hosts = options.ranks});
    if (!plan.ok() || !Fits(options, *plan)) continue;
    const double predicted =
        context_parallel::PredictPrefill(*plan, options.ranks, cached, options.model, options.speed)
            .seconds;
    const double saved = seconds - predicted;
    if (seconds >= 0 && (saved < seconds * kSavedShare || saved < kSavedSeconds)) continue;
    best = name;
    seconds = predicted;
  }
  return best;
}

}  // namespace

std::string FastestExact(const SchedulerOptions& options, int64_t document_length) {
  if (options.ranks == 1) return "full";
  if (options.ring_from >= 0) return document_length < options.ring_from ? "full" : "ring_kv";
  return Fastest(options, {"full", "ring_kv", "ulysses", "token_ring", "ring_q"}, 0,
                 document_length);
}

std::string FastestOverPrefix(const SchedulerOptions& options, int64_t cached, int64_t length) {
  if (options.ranks == 1) return "full";
  return Fastest(options, {"ring_kv", "token_ring", "ring_q"}, cached, length);
}

std::string ChooseStrategy(const SchedulerOptions& options, const Request& request) {
  const SequenceSpec& spec = request.spec;
  const int hosts = spec.hosts == 0 ? options.default_hosts : spec.hosts;
  const bool can_select =
      options.has_retaining_heads || !spec.embedded_query.empty() || !spec.compressor.empty();
  if (!request.exact && hosts > 1 && spec.query_begin >= options.full_below && can_select)
    return "apb";
  return FastestExact(options, spec.query_begin);
}

}  // namespace apb::schedule
