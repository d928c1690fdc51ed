// What happens in the next step: pure logic over a clock that the caller gives, so that it can be
// simulated.
//
//   waiting   submitted or preempted, until its prompt fits the KV blocks of every rank; the first
//             to come is the first to be served
//   prefill   admitted with a document, or with much that is not cached, until all layers are done
//   query     no document, nearly all of the prompt cached, or prefill done, until all rows of the
//             prompt have run
//   decode    the first token is drawn, until stop token, length, or end of the KV cache
//   (gone)    ended, cancelled or rejected: its blocks are released, or stay as a cached prefix, at
//             the beginning of the next step
//
// A request may ask that its KV is kept as a *context*: a cached prefix that stays until it is
// cancelled, with or without a prefix cache. What can never fit beside the contexts is refused.
//
// A step is one batch of rows (query and decode rows of any number of sequences) and at most one
// slice of layers of one document prefill. Short documents that are admitted in the same step are
// one prefill, where their strategies can batch. A slice takes about `slice_seconds_busy` while
// others decode, so a long prefill delays a token by that much and no more. Of several prefills the
// one with the least work left goes on first; waiting counts for it (kAgingTokensPerSecond), so a
// long one is not starved. When decoding sequences run out of blocks, the youngest is preempted:
// its blocks are released and it is computed again later, with the tokens it already has.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/schedule/events.h"
#include "engine/schedule/kv_ledger.h"
#include "engine/schedule/prefix_cache.h"
#include "engine/schedule/request.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Errors become an end event (kRejected) of the sequence: kInvalidArgument when it can never run,
  // kResourceExhausted when the queue is full.
  void Submit(Request request, absl::Time now);
  // Ends the sequence; of one that has ended and is kept, the KV is kept no longer. Other ids are
  // ignored.
  void Cancel(SequenceId id, absl::Time now);
  // The next step; may be empty when there is nothing to do. The one before must be complete.
  StepPlan NextStep(absl::Time now);
  void Complete(const StepPlan& plan, const StepResult& result, absl::Time now);
  std::vector<Event> TakeEvents();
  // Gives back, with the next step, all that only cached prefixes hold.
  void ForgetPrefixes() { ledger_.EvictAll(); }

  bool idle() const { return sequences_.empty() && !ledger_.has_releases(); }
  int64_t running() const { return static_cast<int64_t>(sequences_.size() - waiting_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  // For statistics.
  const KvLedger& ledger() const { return ledger_; }
  int64_t prompt_tokens_computed() const { return prompt_tokens_computed_; }
  int64_t preemptions() const { return preemptions_; }

 private:
  static constexpr double kAgingTokensPerSecond = 2000;
  enum class State { kWaiting, kPrefill, kQuery, kDecode };
  struct Sequence {
    Request request;
    State state = State::kWaiting;
    KvLayout uncached_layout;            // where its KV goes if nothing of it is cached
    KvLayout layout;                     // where its KV goes
    std::vector<int64_t> shared_blocks;  // blocks of `parent` that it uses, by rank
    std::optional<SequenceId> parent;    // the cached prefix that it starts from
    std::string kv_recipe;               // of its KV, as in CachedPrefix
    int64_t min_match = 0;               // as in CachedPrefix
    int64_t cached_tokens = 0;           // of the prompt, for the client
    int64_t document_tokens = 0;         // tokens that its document prefill computes
    uint64_t batch = 0;                  // prefills with the same number run together
    int32_t layers_done = 0;
    int64_t next_position = 0;  // position of the next row to run (query or decode)
    int32_t last_token = 0;     // the row at next_position while decoding
    int64_t generated = 0;      // in total, over preemptions
    double prefill_seconds_spent = 0;
    uint64_t admitted = 0;  // order of admission
    absl::Time submitted, prefill_begin, first_token, last_progress;
    double queue_seconds = -1, prefill_seconds = -1;
  };

  // Own blocks of a sequence on `rank` when it has KV of the positions below `length`.
  int64_t BlocksFor(const Sequence& s, int rank, int64_t length) const;
  // Takes the blocks for `length` tokens, from cached prefixes if need be; false: they are not
  // there.
  bool Grow(Sequence& s, int64_t length);
  void ReleaseBlocks(Sequence& s);
  // The sequence's KV stays as a cached prefix, if it is whole; `kept`: as a context.
  bool KeepAsPrefix(Sequence& s, bool kept);
  void StartUncached(Sequence& s);
  // `search`: else it starts from its context only, if it has one.
  PrefixCache::Match FindPrefix(const Sequence& s, bool search);
  void UsePrefix(Sequence& s, bool search);
  void DropParent(Sequence& s);
  absl::Status CheckContext(const Request& request) const;
  bool TakeBlocks(Sequence& s);
  bool FitsBesideContexts(const Sequence& s) const;
  void RejectForRoom(Sequence& s, absl::Time now);
  void Admit(StepPlan& plan, absl::Time now);
  // Gives the prefill of a sequence that is admitted now to a batch of `open`, by strategy.
  struct Batch {
    uint64_t number = 0;
    int64_t tokens = 0;
  };
  void JoinBatch(Sequence& s, std::map<std::string, Batch>& open);
  void AddDecodeTokens(StepPlan& plan, absl::Time now);
  void AddQueryTokens(StepPlan& plan);
  void AddPrefillSlice(StepPlan& plan, absl::Time now);
  void Preempt(Sequence& s, absl::Time now);
  Sequence* YoungestDecoding();
  void OnPrefillDone(const PrefillSlice& slice, double seconds, absl::Time now);
  void OnToken(Sequence& s, const TokenEvent& event, absl::Time now);
  void End(Sequence& s, EndReason reason, absl::Time now, absl::Status status = {});
  void Reject(SequenceId id, absl::Status status);
  void Progress(Sequence& s, absl::Time now);

  const SchedulerOptions options_;
  std::map<SequenceId, Sequence> sequences_;
  std::deque<SequenceId> waiting_;
  KvLedger ledger_;
  std::vector<Event> events_;
  int64_t waiting_tokens_ = 0;
  uint64_t next_step_ = 1, next_admission_ = 1, next_batch_ = 1;
  double seconds_per_token_layer_ = 0;  // of document prefills, moving average
  int64_t prompt_tokens_computed_ = 0, preemptions_ = 0;
};

}  // namespace apb::schedule
