// The scheduler's use of cached prefixes: which KV of an ended sequence stays, and which KV a new
// sequence starts from.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/context_parallel/strategies.h"
#include "engine/schedule/auto_strategy.h"
#include "engine/schedule/scheduler.h"

namespace apb::schedule {

using context_parallel::ShardPlan;

namespace {

bool IsExact(const SequenceSpec& spec) {
  return context_parallel::FindStrategy(spec.strategy)->exact;  // not null: the request is resolved
}

// How the KV of the document is computed: "" if exactly. The query in the anchor is not part of the
// recipe (docs/algorithms.md, "What is reused").
std::string KvRecipeOf(const SequenceSpec& spec) {
  if (IsExact(spec) || spec.query_begin == 0) return "";
  std::string recipe = spec.strategy;
  context_parallel::ForEachField(spec.strategy_options, [&recipe](const char*, const auto& field) {
    absl::StrAppend(&recipe, "/", field);
  });
  return recipe;
}

}  // namespace

bool Scheduler::KeepAsPrefix(Sequence& s, bool kept) {
  SequenceSpec& spec = s.request.spec;
  const int64_t length = s.next_position;  // all tokens below have KV
  const bool wanted = kept || (options_.prefix_cache && length >= PrefixCache::kChunk);
  if (!wanted || !ledger_.holds(spec.id) ||
      (s.state != State::kDecode && s.state != State::kQuery) || length < spec.query_begin ||
      length > static_cast<int64_t>(spec.tokens.size())) {
    return false;
  }
  CachedPrefix prefix{.id = spec.id, .kv_recipe = s.kv_recipe, .min_match = s.min_match};
  prefix.kept = kept;
  prefix.tokens.assign(spec.tokens.begin(), spec.tokens.begin() + length);
  for (int r = 0; r < options_.ranks; ++r)  // without the slot for one more token
    prefix.own_blocks.push_back(BlocksFor(s, r, length));
  prefix.layout = s.layout;
  prefix.parent = s.parent;  // its pin passes to the prefix
  s.parent.reset();
  ledger_.Keep(std::move(prefix));
  return true;
}

void Scheduler::StartUncached(Sequence& s) {
  SequenceSpec& spec = s.request.spec;
  s.layout = s.uncached_layout;
  s.shared_blocks.clear();
  s.kv_recipe = KvRecipeOf(spec);
  s.min_match = s.kv_recipe.empty() ? 0 : spec.query_begin;
  s.document_tokens = spec.query_begin;
  spec.parent = SequenceId{};
  spec.cached_tokens = spec.prefill_end = 0;
  spec.prefix_strategy.clear();
}

PrefixCache::Match Scheduler::FindPrefix(const Sequence& s, bool search) {
  const SequenceSpec& spec = s.request.spec;
  if (s.request.context.has_value())
    return ledger_.prefixes().FindFrom(*s.request.context, spec.tokens, search);
  if (!options_.prefix_cache || !search) return {};
  std::vector<std::string> recipes = {""};  // exact KV serves every request
  if (!s.kv_recipe.empty()) recipes.push_back(s.kv_recipe);
  const PrefixCache::Match match = ledger_.prefixes().Find(spec.tokens, recipes);
  // An approximate prefill of the whole prompt may be less work than an exact prefill of most of
  // it.
  const bool most = 2 * match.length >= static_cast<int64_t>(spec.tokens.size());
  return IsExact(spec) || most ? match : PrefixCache::Match{};
}

// The tokens behind the prefix are computed exactly, so the border between document and query does
// not matter any more. If they are many, all but the last go through a prefill that the ranks
// share; else every rank computes all of them.
void Scheduler::UsePrefix(Sequence& s, bool search) {
  SequenceSpec& spec = s.request.spec;
  StartUncached(s);
  const int64_t length = static_cast<int64_t>(spec.tokens.size());
  const PrefixCache::Match match = FindPrefix(s, search);
  if (match.prefix == nullptr) return;
  s.parent = spec.parent = match.prefix->id;
  spec.cached_tokens = match.length;
  s.kv_recipe = match.prefix->kv_recipe;
  // A prompt may share all but the last tokens of its context's document.
  s.min_match = std::min(match.prefix->min_match, match.length);
  ledger_.Pin(*s.parent);
  s.layout = match.prefix->layout.Prefix(match.length);
  for (int r = 0; r < options_.ranks; ++r)
    s.shared_blocks.push_back(s.layout.Count(r, match.length) / options_.block_size);
  const int64_t left = length - 1 - match.length;
  const int64_t prefill_from = options_.ring_from >= 0 ? options_.ring_from : kPrefillFrom;
  s.document_tokens = left >= prefill_from ? left : 0;
  if (s.document_tokens == 0) return;
  spec.prefill_end = length - 1;
  const bool as_asked = options_.ranks > 1 && !s.request.chosen &&
                        ReadsPrefixOnAllRanks(*context_parallel::FindStrategy(spec.strategy));
  spec.prefix_strategy =
      as_asked ? spec.strategy : FastestOverPrefix(options_, match.length, match.length + left);
  absl::StatusOr<ShardPlan> plan = PlanOf(spec, options_.ranks);
  APB_CHECK(plan.ok());  // the request is resolved, and the strategy can start from a prefix
  s.layout.Append(*std::move(plan), spec.prefill_end);
}

void Scheduler::DropParent(Sequence& s) {
  if (s.parent.has_value()) ledger_.Unpin(*s.parent);
  s.parent.reset();
}

}  // namespace apb::schedule
