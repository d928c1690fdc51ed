// A small group for tests of the scheduler: options, requests, and an executor without ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/time/time.h"
#include "engine/schedule/scheduler.h"

namespace apb::schedule {

// 2 ranks with 4 hosts and 64 blocks of 4 tokens each, no prefix cache.
SchedulerOptions TestOptions();

// A document and a query of so many tokens, all of them the same token.
Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens);

// A prompt of `length` times `token` that is kept as a context.
Request MakeContext(uint64_t id, int64_t length, int32_t token = 1);

// A prompt that continues `context` with `tokens` other tokens.
Request MakeQuestion(uint64_t id, const Request& context, int64_t tokens, int32_t max_tokens);

// Executes plans as a rank would, and checks them, on a clock of its own.
class FakeExecutor {
 public:
  explicit FakeExecutor(Scheduler& scheduler) : scheduler_(scheduler) {}
  // Executes one step of 10 ms. A drawn token is the position that it is drawn at, so repeats and
  // gaps show.
  StepPlan Step();
  // Steps until all requests have ended; then no sequence and no block may be left.
  void RunUntilIdle();

  absl::Time now() const { return now_; }
  size_t live() const { return live_.size(); }

  std::map<SequenceId, std::vector<int32_t>> tokens;
  std::map<SequenceId, EndEvent> ends;
  int64_t forks = 0;        // sequences that began with cached KV
  SequenceId undrawable{};  // drawing from its logits fails

 private:
  Scheduler& scheduler_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<SequenceId, SequenceSpec> live_;
  std::map<SequenceId, int32_t> layers_;  // that the prefill of each has done
};

}  // namespace apb::schedule
