#include "engine/schedule/request.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/attention/strategy_plan.h"
#include "engine/base/status_macros.h"

namespace apb::schedule {
namespace {

absl::Status CheckTokens(const std::vector<int32_t>& tokens, int64_t vocab_size, const char* what) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(what, "[", i, "]=", tokens[i],
                                                     ": must be from 0 to ", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // NaN fails
  return absl::InvalidArgumentError(
      absl::StrCat(name, "=", value, ": must be from ", low, " to ", high));
}

absl::Status CheckSampling(const sampling::SamplingParams& p) {
  APB_RETURN_IF_ERROR(CheckRange("max_tokens", p.max_tokens, 1, INT32_MAX));
  APB_RETURN_IF_ERROR(CheckRange("temperature", p.temperature, 0, 100));
  APB_RETURN_IF_ERROR(CheckRange("top_p", p.top_p, 1e-9, 1));
  APB_RETURN_IF_ERROR(CheckRange("top_k", p.top_k, 0, INT32_MAX));
  APB_RETURN_IF_ERROR(CheckRange("min_p", p.min_p, 0, 1));
  APB_RETURN_IF_ERROR(CheckRange("presence_penalty", p.presence_penalty, -100, 100));
  APB_RETURN_IF_ERROR(CheckRange("frequency_penalty", p.frequency_penalty, -100, 100));
  APB_RETURN_IF_ERROR(CheckRange("repetition_penalty", p.repetition_penalty, 1e-6, 1e6));
  APB_RETURN_IF_ERROR(CheckRange("logprobs", p.logprobs, -1, 1000));
  return CheckRange("min_tokens", p.min_tokens, 0, INT32_MAX);
}

absl::Status CheckPrompt(const Request& request, const SchedulerOptions& options) {
  const int64_t n = static_cast<int64_t>(request.tokens.size());
  if (n == 0) return absl::InvalidArgumentError("tokens: the prompt is empty");
  if (n + 1 > options.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens: a prompt of ", n, " tokens leaves no room for an answer in a context of ",
        options.max_model_len));
  }
  if (request.query_begin < 0 || request.query_begin >= n) {
    return absl::InvalidArgumentError(
        absl::StrCat("query_begin=", request.query_begin, ": must be from 0 to ", n - 1));
  }
  if (request.query_insert_position < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "query_insert_position=", request.query_insert_position, ": must not be negative"));
  }
  if (static_cast<int64_t>(request.embedded_query.size()) > options.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat(
        "embedded_query: ", request.embedded_query.size(), " tokens, at most ",
        options.max_model_len));
  }
  APB_RETURN_IF_ERROR(CheckTokens(request.tokens, options.vocab_size, "tokens"));
  return CheckTokens(request.embedded_query, options.vocab_size, "embedded_query");
}

// Strategy, hosts and compressor of the request, `auto` and defaults replaced.
absl::Status Choose(const Request& request, const SchedulerOptions& options, SequenceSpec& spec) {
  spec.hosts = request.hosts == 0 ? options.default_hosts : request.hosts;
  if (spec.hosts < 0 || spec.hosts % options.ranks != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hosts=", request.hosts, ": must be a multiple of the ", options.ranks, " ranks"));
  }
  spec.strategy = request.strategy.empty() ? "auto" : request.strategy;
  if (request.exact && (spec.strategy == "apb" || spec.strategy == "star")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "strategy=", spec.strategy, ": is approximate, and exact results are asked for"));
  }
  if (spec.strategy == "auto") {
    const bool full =
        request.exact || request.query_begin < options.auto_full_below || spec.hosts == 1;
    spec.strategy = full ? "full" : "apb";
  }
  if (spec.strategy == "full") spec.hosts = 1;
  const std::string& wanted = request.compressor;
  if (!wanted.empty() && wanted != "retaining_heads" && wanted != "query_aware" &&
      wanted != "random") {
    return absl::InvalidArgumentError(absl::StrCat(
        "compressor=", wanted, ": must be retaining_heads, query_aware or random"));
  }
  if (wanted == "retaining_heads" && !options.has_retaining_heads) {
    return absl::InvalidArgumentError("compressor=retaining_heads: this model has none");
  }
  if (spec.strategy == "apb") {
    spec.compressor = !wanted.empty()                ? wanted
                      : options.has_retaining_heads ? "retaining_heads"
                                                    : "query_aware";
  }
  return absl::OkStatus();
}

PrefillWork WorkOf(const attention::ShardPlan& plan, int ranks) {
  PrefillWork most;
  for (int rank = 0; rank < ranks; ++rank) {
    const attention::HostRange range =
        attention::HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
    const double anchor = static_cast<double>(plan.anchor.size());
    PrefillWork work;
    bool sees_anchor = false;
    for (int h = range.first; h < range.last; ++h) {
      const double local = static_cast<double>(plan.hosts[h].local_length());
      double others = plan.hosts[h].sees_anchor ? anchor : 0;
      for (int e = 0; e < h; ++e) others += static_cast<double>(plan.hosts[e].passing_length);
      work.rows += local;
      work.pairs += local * (local / 2 + others);
      sees_anchor |= plan.hosts[h].sees_anchor;
    }
    if (sees_anchor) {
      work.rows += anchor;
      work.pairs += anchor * anchor / 2;
    }
    most.rows = std::max(most.rows, work.rows);
    most.pairs = std::max(most.pairs, work.pairs);
  }
  return most;
}

// Document and KV placement of the spec.
absl::Status Place(const SchedulerOptions& options, ResolvedRequest& resolved) {
  const SequenceSpec& spec = resolved.spec;
  const attention::PromptLayout layout{
      .document_length = spec.query_begin,
      .query_length = resolved.prompt_tokens - spec.query_begin,
      .query_insert_position = spec.query_insert_position,
      .embedded_query_length = static_cast<int64_t>(spec.embedded_query.size())};
  APB_ASSIGN_OR_RETURN(
      const attention::ShardPlan plan,
      attention::MakeShardPlan(spec.strategy, layout,
                               {.hosts = spec.hosts,
                                .anchor_length = spec.anchor_length,
                                .passing_length = spec.passing_length}));
  resolved.work = WorkOf(plan, options.ranks);
  resolved.share.query_begin = spec.query_begin;
  resolved.share.owner_offset = static_cast<uint64_t>(spec.id);
  for (int rank = 0; rank < options.ranks; ++rank) {
    resolved.share.document_slots.push_back(
        attention::DocumentTokensOfRank(plan, options.ranks, rank));
  }
  return absl::OkStatus();
}

// How many tokens the sequence may generate: what was asked for, what the context leaves, what the
// pools hold when nobody else is there. The KV of the last token is never needed.
absl::Status LimitGenerated(const SchedulerOptions& options, ResolvedRequest& resolved) {
  const auto fits = [&](int64_t generated) {
    const std::vector<int64_t> blocks =
        resolved.share.BlocksAt(resolved.prompt_tokens + generated - 1, options.block_size);
    return *std::max_element(blocks.begin(), blocks.end()) <= options.blocks_per_rank;
  };
  if (!fits(1)) {
    const std::vector<int64_t> blocks =
        resolved.share.BlocksAt(resolved.prompt_tokens, options.block_size);
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens: a prompt of ", resolved.prompt_tokens, " tokens under strategy ",
        resolved.spec.strategy, " takes ", *std::max_element(blocks.begin(), blocks.end()),
        " KV blocks on one rank, which has ", options.blocks_per_rank));
  }
  int64_t low = 1, high = std::min<int64_t>(resolved.spec.sampling.max_tokens,
                                            options.max_model_len - resolved.prompt_tokens);
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  resolved.generated_limit = low;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ResolvedRequest> ResolveRequest(Request request, const SchedulerOptions& options) {
  APB_RETURN_IF_ERROR(CheckPrompt(request, options));
  APB_RETURN_IF_ERROR(CheckSampling(request.sampling));
  ResolvedRequest resolved;
  SequenceSpec& spec = resolved.spec;
  APB_RETURN_IF_ERROR(Choose(request, options, spec));
  resolved.prompt_tokens = static_cast<int64_t>(request.tokens.size());
  spec.id = request.id;
  spec.query_begin = request.query_begin;
  spec.query_insert_position = request.query_insert_position;
  spec.anchor_length = request.anchor_length;
  spec.passing_length = request.passing_length;
  if (spec.strategy == "apb") spec.embedded_query = std::move(request.embedded_query);
  if (spec.strategy == "full" && resolved.prompt_tokens <= options.max_batch_rows) {
    spec.query_begin = 0;
  }
  spec.tokens = std::move(request.tokens);
  spec.sampling = std::move(request.sampling);
  APB_RETURN_IF_ERROR(Place(options, resolved));
  APB_RETURN_IF_ERROR(LimitGenerated(options, resolved));
  return resolved;
}

}  // namespace apb::schedule
