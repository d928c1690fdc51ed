#include "tests/engine/schedule/fake_executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace apb::schedule {

SchedulerOptions TestOptions() {
  return {.ranks = 2,
          .default_hosts = 4,
          .block_size = 4,
          .blocks_per_rank = 64,
          .layers = 4,
          .max_model_len = 200,
          .has_retaining_heads = true,
          .full_below = 32,
          .max_batch_tokens = 16,
          .max_waiting = 1000,
          .max_waiting_tokens = 1 << 20};
}

Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens) {
  Request r;
  r.spec.id = SequenceId{id};
  r.spec.strategy_options.hosts = 0;
  r.spec.tokens.assign(document + query, 1);
  r.spec.query_begin = document;
  r.spec.embedded_query.assign(std::min<int64_t>(query, 3), 1);
  r.spec.sampling.max_tokens = max_tokens;
  return r;
}

Request MakeContext(uint64_t id, int64_t length, int32_t token) {
  Request r = MakeRequest(id, length - 1, 1, 0);
  r.spec.tokens.assign(length, token);
  r.keep = true;
  return r;
}

Request MakeQuestion(uint64_t id, const Request& context, int64_t tokens, int32_t max_tokens) {
  Request r = context;
  r.spec.id = SequenceId{id};
  r.spec.tokens.insert(r.spec.tokens.end(), tokens, 40);
  r.spec.sampling.max_tokens = max_tokens;
  r.keep = false;
  r.context = context.spec.id;
  return r;
}

StepPlan FakeExecutor::Step() {
  StepPlan plan = scheduler_.NextStep(now_);
  for (const SequenceId id : plan.releases) {
    EXPECT_EQ(live_.erase(id), 1u);
    layers_.erase(id);
  }
  for (const SequenceSpec& spec : plan.admissions) {
    EXPECT_TRUE(live_.emplace(spec.id, spec).second);
    if (spec.cached_tokens > 0) {
      EXPECT_TRUE(live_.contains(spec.parent));
      EXPECT_LT(spec.cached_tokens, static_cast<int64_t>(spec.tokens.size()));
      ++forks;
    }
  }
  StepResult result;
  for (const PrefillSlice& slice : plan.prefill) {
    EXPECT_FALSE(slice.ids.empty());
    for (const SequenceId id : slice.ids) {
      EXPECT_TRUE(live_.contains(id));
      // The sequences of a batch are always at the same layer.
      EXPECT_EQ(std::exchange(layers_[id], slice.layer_end), slice.layer_begin);
    }
    EXPECT_LT(slice.layer_begin, slice.layer_end);
    result.prefill_seconds = 0.01 * (slice.layer_end - slice.layer_begin);
  }
  int64_t batch_tokens = 0;
  for (const TokenSpan& span : plan.spans) {
    EXPECT_TRUE(live_.contains(span.id));
    batch_tokens += static_cast<int64_t>(span.tokens.size());
    if (span.sample)
      result.tokens.push_back(
          {span.id, {.token = static_cast<int32_t>(span.position + span.tokens.size() - 1)}});
    if (span.sample && span.id == undrawable) {
      result.tokens.pop_back();
      result.failures.push_back({span.id, absl::InternalError("NaN")});
    }
  }
  EXPECT_LE(batch_tokens, 16);
  now_ += absl::Milliseconds(10);
  scheduler_.Complete(plan, result, now_);
  for (const Event& e : scheduler_.TakeEvents()) {
    if (const auto* token = std::get_if<TokenEvent>(&e)) {
      tokens[token->id].push_back(token->sampled.token);
    } else if (const auto* end = std::get_if<EndEvent>(&e)) {
      EXPECT_TRUE(ends.emplace(end->id, *end).second) << "ended twice";
    }
  }
  return plan;
}

void FakeExecutor::RunUntilIdle() {
  for (int i = 0; i < 100000 && !scheduler_.idle(); ++i) Step();
  EXPECT_TRUE(scheduler_.idle());
  EXPECT_TRUE(live_.empty());
  for (int r = 0; r < 2; ++r) EXPECT_EQ(scheduler_.ledger().used(r), 0);
}

}  // namespace apb::schedule
