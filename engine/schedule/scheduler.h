// Decides what the ranks do in the next step. Pure logic on a clock that the caller gives, so that
// tests can simulate it.
//
//   waiting   submitted or preempted, until the prompt fits the KV blocks of every rank; first
//             come, first served
//   prefill   admitted with a document, or with many uncached tokens, until all layers are done
//   query     after the prefill, or at once without one, until the rest of the prompt has run
//   decode    from the first drawn token to a stop token, the length, or the end of the KV cache
//   (gone)    ended, cancelled or rejected; its blocks are released at the beginning of the next
//             step, or stay as a cached prefix
//
// A request may ask that its KV is kept as a *context*: a cached prefix that stays until it is
// cancelled, whether there is a prefix cache or not. A request that can never fit beside the
// contexts is rejected.
//
// A step is one batch of tokens (query and decode tokens of any number of sequences) and at most
// one slice of layers of one document prefill. Short documents that are admitted in the same step
// share a prefill if their strategy can batch. A slice takes about `slice_seconds_busy` while
// others decode, so a long prefill delays a token by that much and no more. Among several prefills,
// the one with the least work left goes first; waiting time is credited (kAgingTokensPerSecond), so
// that a long prefill is not starved. When decoding sequences run out of blocks, the youngest is
// preempted: its blocks are released, and it is computed again later, with the tokens it already
// has.
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

  // An error becomes an end event (kRejected) of the sequence: kInvalidArgument if it can never
  // run, kNotFound if its context is gone, kResourceExhausted if the queue is full.
  void Submit(Request request, absl::Time now);
  // Ends a running or waiting sequence. If the id is that of a context, the context becomes an
  // ordinary cached prefix. Other ids are ignored.
  void Cancel(SequenceId id, absl::Time now);
  // The next step; empty if there is nothing to do. The previous step must be complete.
  StepPlan NextStep(absl::Time now);
  void Complete(const StepPlan& plan, const StepResult& result, absl::Time now);
  std::vector<Event> TakeEvents();
  // Gives up all unpinned cached prefixes; the next step releases their blocks.
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
    KvLayout uncached_layout;            // where its KV goes if no prefix is cached
    KvLayout layout;                     // where its KV goes
    std::vector<int64_t> shared_blocks;  // blocks of `parent` that it uses, by rank
    std::optional<SequenceId> parent;    // the cached prefix that it starts from
    std::string kv_recipe;               // of its KV, as in CachedPrefix
    int64_t min_match = 0;               // as in CachedPrefix
    int64_t cached_tokens = 0;           // of the prompt; what the client is told
    int64_t document_tokens = 0;         // tokens that its document prefill computes
    uint64_t batch = 0;                  // prefills with the same number run together
    int32_t layers_done = 0;
    int64_t next_position = 0;  // position of the next query or decode token to run
    int32_t last_token = 0;     // the token at next_position while decoding
    int64_t generated = 0;      // tokens, those before a preemption included
    double prefill_seconds_spent = 0;
    uint64_t admitted = 0;  // order of admission
    absl::Time submitted, prefill_begin, first_token, last_progress;
    double queue_seconds = -1, prefill_seconds = -1;  // -1: not known yet
  };

  // Blocks that the sequence itself needs on `rank` for KV of the positions below `length`, those
  // shared with its parent not counted.
  int64_t BlocksFor(const Sequence& s, int rank, int64_t length) const;
  // Takes the blocks for `length` tokens and evicts cached prefixes if it must. False: there are
  // too few blocks; nothing is taken.
  bool Grow(Sequence& s, int64_t length);
  void ReleaseBlocks(Sequence& s);
  // Keeps the KV of an ended sequence as a cached prefix, as a context if `kept`. False: the KV is
  // incomplete or not wanted.
  bool KeepAsPrefix(Sequence& s, bool kept);
  // Resets the sequence to a start without cached KV.
  void StartUncached(Sequence& s);
  // The cached prefix that the prompt can start from. `search` looks through all prefixes; without
  // it, only through the context that the request names.
  PrefixCache::Match FindPrefix(const Sequence& s, bool search);
  // Makes the sequence start from FindPrefix, and plans how the rest is computed.
  void UsePrefix(Sequence& s, bool search);
  void DropParent(Sequence& s);
  absl::Status CheckContext(const Request& request) const;
  // Takes the blocks for a waiting prompt, with the best cached prefix that leaves room for it.
  bool TakeBlocks(Sequence& s);
  bool FitsBesideContexts(const Sequence& s) const;
  void RejectForRoom(Sequence& s, absl::Time now);
  void Admit(StepPlan& plan, absl::Time now);
  // Assigns the prefill of a sequence that is admitted now to a batch. `open` holds the batches of
  // this step by strategy.
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
  double seconds_per_token_layer_ = 0;  // moving average over document prefills
  int64_t prompt_tokens_computed_ = 0, preemptions_ = 0;
};

}  // namespace apb::schedule
