#include "engine/schedule/request.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/prefill_memory.h"
#include "engine/context_parallel/strategies.h"
#include "engine/schedule/auto_strategy.h"

namespace apb::schedule {

using context_parallel::HostsRule;
using context_parallel::ShardPlan;
using context_parallel::StrategyInfo;

namespace {

// An executor error ends the whole group, so no request may bring one about.
absl::Status CheckTokens(const SequenceSpec& spec, int64_t vocab_size) {
  const auto check = [&](const std::vector<int32_t>& tokens, const char* what) {
    for (const int32_t token : tokens) {
      if (token < 0 || token >= vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(what, ": token id ", token, " is outside the vocabulary of ", vocab_size));
      }
    }
    return absl::OkStatus();
  };
  APB_RETURN_IF_ERROR(check(spec.tokens, "prompt"));
  return check(spec.embedded_query, "embedded query");
}

absl::Status CheckSampling(const sampling::SamplingParams& p) {
  absl::Status status;
  sampling::ForEachField(p, [&status](const char* name, const auto& value) {
    if constexpr (std::is_same_v<decltype(value), const float&>) {
      if (status.ok() && !std::isfinite(value))
        status = absl::InvalidArgumentError(absl::StrCat("sampling: ", name, " must be finite"));
    }
  });
  APB_RETURN_IF_ERROR(status);
  if (p.repetition_penalty <= 0)
    return absl::InvalidArgumentError("sampling: repetition_penalty must be above 0");
  if (p.max_tokens < 0) return absl::InvalidArgumentError("sampling: max_tokens is negative");
  return absl::OkStatus();
}

}  // namespace

int64_t PrefillEnd(const SequenceSpec& spec) {
  if (spec.cached_tokens == 0) return spec.query_begin;
  return spec.prefix_strategy.empty() ? spec.cached_tokens : spec.prefill_end;
}

absl::StatusOr<ShardPlan> PlanOf(const SequenceSpec& spec, int ranks) {
  const bool cached = spec.cached_tokens > 0;
  context_parallel::StrategyOptions options = spec.strategy_options;
  if (cached) options.hosts = ranks;
  return context_parallel::MakeShardPlan(
      cached ? spec.prefix_strategy : spec.strategy,
      {.document_length = PrefillEnd(spec),
       .cached_length = spec.cached_tokens,
       .query_length = static_cast<int64_t>(spec.tokens.size()) - PrefillEnd(spec),
       .query_insert_position = spec.query_insert_position,
       .embedded_query_length = static_cast<int64_t>(spec.embedded_query.size())},
      options);
}

namespace {

int64_t MostOnARank(const ShardPlan& plan, int ranks) {
  int64_t most = 0;
  for (int rank = 0; rank < ranks; ++rank)
    most = std::max(most, context_parallel::DocumentTokensOfRank(plan, ranks, rank));
  return most;
}

// Tokens behind the document are spread evenly over the ranks, so the fullest rank bounds how many
// can be generated.
int64_t RoomForNewTokens(const SchedulerOptions& options, const ShardPlan& plan) {
  const int64_t left =
      options.blocks_per_rank * options.block_size - MostOnARank(plan, options.ranks);
  return std::min(options.max_model_len, left * options.ranks);
}

// Balanced shards put more of the document's KV on the first rank. If that leaves no room for the
// answer, the shards have equal length.
absl::StatusOr<ShardPlan> BalancedOrEqual(const SchedulerOptions& options,
                                          const StrategyInfo& strategy, Request& request) {
  SequenceSpec& spec = request.spec;
  spec.strategy_options.row_cost_pairs = 0;
  if (strategy.can_balance && request.balanced.value_or(options.balanced)) {
    spec.strategy_options.row_cost_pairs =
        context_parallel::RowCostInPairs(options.model, options.speed);
    APB_ASSIGN_OR_RETURN(ShardPlan balanced, PlanOf(spec, options.ranks));
    const int64_t length = static_cast<int64_t>(spec.tokens.size());
    const int64_t wanted = std::min(length + spec.sampling.max_tokens, options.max_model_len);
    if (RoomForNewTokens(options, balanced) >= wanted - spec.query_begin) return balanced;
    spec.strategy_options.row_cost_pairs = 0;
  }
  return PlanOf(spec, options.ranks);
}

// Sets the number of hosts: the one that the strategy prescribes, or the one that the request asks
// for.
absl::Status ResolveHosts(const SchedulerOptions& options, const StrategyInfo& strategy,
                          SequenceSpec& spec) {
  int32_t& hosts = spec.strategy_options.hosts;
  switch (strategy.hosts) {
    case HostsRule::kOne:
      hosts = 1;
      return absl::OkStatus();
    case HostsRule::kOneOnEachRank:
      if (hosts == 0) hosts = options.ranks;
      if (hosts == options.ranks) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat("hosts=", hosts, ": strategy '", spec.strategy,
                                                     "' has one on each of the ", options.ranks,
                                                     " ranks"));
    case HostsRule::kSameOnEachRank:
      if (hosts == 0) hosts = options.default_hosts;
      if (hosts >= 1 && hosts % options.ranks == 0) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrCat("hosts=", hosts, ": must be a multiple of the ", options.ranks, " ranks"));
  }
  return absl::InternalError("a strategy with an unknown rule of hosts");
}

// Replaces `auto` by a name. Returns the row of the strategy, if this group can run it as the
// request says.
absl::StatusOr<const StrategyInfo*> ResolveStrategy(const SchedulerOptions& options,
                                                    Request& request) {
  SequenceSpec& spec = request.spec;
  const bool automatic = spec.strategy.empty() || spec.strategy == "auto";
  if (automatic) {
    spec.strategy = ChooseStrategy(options, request);
    request.chosen = true;
  }
  const StrategyInfo* strategy = context_parallel::FindStrategy(spec.strategy);
  if (strategy == nullptr) return context_parallel::UnknownStrategy(spec.strategy);
  if (automatic && strategy->exact)
    spec.strategy_options.hosts = 0;  // asked for approximate strategies
  if (request.exact && !strategy->exact) {
    return absl::InvalidArgumentError(
        absl::StrCat("exact=true contradicts strategy '", spec.strategy, "'"));
  }
  APB_RETURN_IF_ERROR(strategy->supports(options.model, options.ranks));
  APB_RETURN_IF_ERROR(ResolveHosts(options, *strategy, spec));
  return strategy;
}

// Sets the compressor, or clears it if the plan passes nothing on.
absl::Status ResolveCompressor(const SchedulerOptions& options, const ShardPlan& plan,
                               SequenceSpec& spec) {
  std::string& compressor = spec.strategy_options.compressor;
  const bool passes = std::any_of(plan.hosts.begin(), plan.hosts.end(),
                                  [](const auto& h) { return h.passing_length > 0; });
  if (!passes) {
    compressor.clear();
  } else if (compressor.empty()) {
    compressor = options.has_retaining_heads ? "retaining_heads" : "query_aware";
  }
  if (compressor == "retaining_heads" && !options.has_retaining_heads) {
    return absl::InvalidArgumentError(
        "compressor 'retaining_heads': this model has none (use query_aware)");
  }
  if (!compressor.empty() && compressor != "retaining_heads" && compressor != "query_aware" &&
      compressor != "random") {
    return absl::InvalidArgumentError(absl::StrCat("compressor '", compressor, "' is unknown"));
  }
  return absl::OkStatus();
}

// Checks the prefill without a cached prefix; with one, there are fewer tokens, and it takes less
// memory.
absl::Status CheckPrefillMemory(const SchedulerOptions& options, const SequenceSpec& spec,
                                const ShardPlan& plan) {
  if (options.prefill_bytes == 0) return absl::OkStatus();
  const int64_t needed = context_parallel::MostPrefillBytes(
      plan, options.ranks, options.model, spec.strategy_options.compressor, options.overlap);
  if (needed <= options.prefill_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the prompt has ", spec.tokens.size(), " tokens; with strategy '", spec.strategy,
      "' its prefill takes ", needed >> 20, " MiB on a rank beside weights and KV cache, ",
      options.prefill_bytes >> 20,
      " MiB are free there (more ranks or a lower --gpu-memory-utilization give more)"));
}

}  // namespace

absl::StatusOr<KvLayout> ResolveRequest(const SchedulerOptions& options, Request& request) {
  SequenceSpec& spec = request.spec;
  const int64_t length = static_cast<int64_t>(spec.tokens.size());
  if (spec.query_begin < 0 || spec.query_begin >= length) {
    return absl::InvalidArgumentError(
        absl::StrCat("query begins at ", spec.query_begin, " of ", length, " prompt tokens"));
  }
  APB_RETURN_IF_ERROR(CheckTokens(spec, options.vocab_size));
  APB_RETURN_IF_ERROR(CheckSampling(spec.sampling));
  const int64_t room = options.max_model_len - length;
  if (room < (spec.sampling.max_tokens > 0 ? 1 : 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", length, " tokens, the context of this server ", options.max_model_len));
  }
  APB_ASSIGN_OR_RETURN(const StrategyInfo* strategy, ResolveStrategy(options, request));
  APB_ASSIGN_OR_RETURN(ShardPlan plan, BalancedOrEqual(options, *strategy, request));
  APB_RETURN_IF_ERROR(ResolveCompressor(options, plan, spec));
  APB_RETURN_IF_ERROR(CheckPrefillMemory(options, spec, plan));
  const int64_t new_tokens = RoomForNewTokens(options, plan);
  const int64_t query = length - spec.query_begin;
  if (new_tokens < query + (spec.sampling.max_tokens > 0 ? 1 : 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", length, " tokens; with strategy '", spec.strategy,
        "' a rank would keep ", MostOnARank(plan, options.ranks), " of them, its KV cache holds ",
        options.blocks_per_rank * options.block_size));
  }
  // A completion that reaches max_model_len or the end of the cache ends with `length`.
  spec.sampling.max_tokens =
      static_cast<int32_t>(std::min<int64_t>({spec.sampling.max_tokens, room, new_tokens - query}));
  KvLayout layout(options.ranks);
  layout.Append(std::move(plan), spec.query_begin);
  return layout;
}

}  // namespace apb::schedule
