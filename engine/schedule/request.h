// What is asked of the scheduler, and what of it is possible in this group.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"
#include "engine/schedule/prefix_cache.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

// Tokens behind a cached prefix that are worth a prefill, where `ring_from` does not say: rows make
// every rank compute all products, a prefill costs messages around the ring.
inline constexpr int64_t kPrefillFrom = 512;

struct SchedulerOptions {
  int ranks = 1;
  int default_hosts = 1;    // ranks x virtual hosts
  int64_t block_size = 32;  // tokens
  int64_t blocks_per_rank = 0;
  int32_t layers = 1;
  int64_t max_model_len = 0;  // prompt + completion
  int64_t vocab_size = int64_t{1} << 31;
  bool has_retaining_heads = false;
  context_parallel::ModelShape model;
  context_parallel::MachineSpeed speed;  // of the group, for `auto` and balanced blocks
  // Memory that a prefill may take on a rank beside weights and KV cache; 0: not bounded.
  int64_t prefill_bytes = 0;
  bool overlap = false;  // PrefillDeps::overlap_passing, which takes some of it
  // `auto` computes shorter documents exactly: anchors would cost what they save.
  int64_t full_below = 8192;
  // Where `auto` is exact: documents of at least this length on all ranks, shorter ones on one (by
  // the first candidate that does so); -1: as the cost model says. As many tokens behind a cached
  // prefix are computed by a prefill, fewer as rows; -1: kPrefillFrom.
  int64_t ring_from = -1;
  // Exact prefills that are admitted together run together up to so many tokens.
  int64_t prefill_batch_tokens = 2048;
  // Blocks that take equally long (StrategyInfo::can_balance), for requests that do not say.
  bool balanced = false;
  // KV of ended sequences is kept, while there is room, for prompts that begin like them.
  bool prefix_cache = false;
  int64_t max_batch_tokens = 512;
  int64_t max_waiting = 256;  // sequences
  int64_t max_waiting_tokens = 4 << 20;
  double slice_seconds_busy = 0.05;
  double slice_seconds_idle = 0.25;
};

struct Request {
  SequenceSpec spec;    // strategy may be "auto" or ""; hosts 0 = default
  bool exact = false;   // `auto` may choose exact strategies only
  bool chosen = false;  // set by ResolveRequest: spec.strategy was `auto`
  bool report_progress = false;
  // The prompt's KV stays as a context when the request has ended, until the sequence is cancelled.
  bool keep = false;
  // The kept sequence that the prompt goes on from, as far as their tokens are the same. What its
  // KV was computed by applies.
  std::optional<SequenceId> context;
  std::optional<bool> balanced;  // absent: the group's default
};

// Tokens whose KV is there when the rows of the query begin: cached, or computed by a prefill.
int64_t PrefillEnd(const SequenceSpec& spec);
// Who computes which tokens in a sequence's prefill, on a group of so many ranks: the document by
// spec.strategy or, behind a cached prefix, the tokens up to prefill_end by spec.prefix_strategy.
absl::StatusOr<context_parallel::ShardPlan> PlanOf(const SequenceSpec& spec, int ranks);

// Checks a request against the group, turns `auto` and defaults into what will be done, cuts
// max_tokens to what context and cache leave, and tells where the KV goes if nothing of it is
// cached. kInvalidArgument (naming the field) for what can never run.
absl::StatusOr<KvLayout> ResolveRequest(const SchedulerOptions& options, Request& request);

}  // namespace apb::schedule
