// A small group for tests of the scheduler: its options, requests to it, and an executor without
// ranks.
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

// A document of so many tokens and a query behind it, all of them the same token.
Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens);

// A prompt of these tokens that is kept.
Request MakeContext(uint64_t id, int64_t length, int32_t token = 1);

// Goes on from such a prompt with so many other tokens.
Request MakeQuestion(uint64_t id, const Request& context, int64_t tokens, int32_t max_tokens);

// Executes plans like a rank would and checks them, on a clock of its own.
class FakeExecutor {
 public:
  explicit FakeExecutor(Scheduler& scheduler) : scheduler_(scheduler) {}
  // One step of 10 ms; a token drawn is its row's position, so repeats and gaps show.
  StepPlan Step();
  // Until all have ended; then no sequence and no block may be left.
  void RunUntilIdle();

  absl::Time now() const { return now_; }
  size_t live() const { return live_.size(); }

  std::map<SequenceId, std::vector<int32_t>> tokens;
  std::map<SequenceId, EndEvent> ends;
  int64_t forks = 0;        // sequences that began with cached KV
  SequenceId undrawable{};  // its logits are bad

 private:
  Scheduler& scheduler_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<SequenceId, SequenceSpec> live_;
  std::map<SequenceId, int32_t> layers_;  // where the prefill of each is
};

}  // namespace apb::schedule
