// A request to the scheduler, the options of its group, and the check of the one against the other.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"
#include "engine/schedule/prefix_cache.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

// From this many tokens behind a cached prefix on, they go through a prefill, if `ring_from` does
// not say otherwise. As query tokens every rank would compute all of them; a prefill shares them
// but costs messages around the ring.
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
  context_parallel::MachineSpeed speed;  // of the group, for `auto` and balanced shards
  // Memory that a prefill may take on a rank beside weights and KV cache; 0: unlimited.
  int64_t prefill_bytes = 0;
  bool overlap = false;  // PrefillDeps::overlap_passing, which takes some of that memory
  // `auto` computes documents shorter than this exactly, because anchors would cost more than they
  // save.
  int64_t full_below = 8192;
  // Used when `auto` is exact: documents of at least this many tokens are computed by all ranks,
  // shorter ones by one (by the first candidate that does so); -1: by the cost model. From as many
  // tokens behind a cached prefix on, they go through a prefill; -1: kPrefillFrom.
  int64_t ring_from = -1;
  // Exact prefills that are admitted in one step run together up to this many tokens.
  int64_t prefill_batch_tokens = 2048;
  // Default for requests that do not say: shards that take equally long to compute instead of
  // shards of equal length (StrategyInfo::can_balance).
  bool balanced = false;
  // Keeps KV of ended sequences, while there is room, for prompts that begin like them.
  bool prefix_cache = false;
  int64_t max_batch_tokens = 512;  // query and decode tokens of a step
  int64_t max_waiting = 256;       // sequences
  int64_t max_waiting_tokens = 4 << 20;
  double slice_seconds_busy = 0.05;  // target time of a slice of layers while others decode
  double slice_seconds_idle = 0.25;  // and while none does
};

struct Request {
  SequenceSpec spec;    // before ResolveRequest, strategy may be "auto" or "", hosts 0 (default)
  bool exact = false;   // only exact strategies may be used
  bool chosen = false;  // ResolveRequest has chosen spec.strategy, which was `auto`
  bool report_progress = false;
  // After the end of the request, its KV stays as a context until the sequence is cancelled.
  bool keep = false;
  // The context that the prompt continues, as far as their tokens are equal. The KV is used
  // whatever strategy computed it.
  std::optional<SequenceId> context;
  std::optional<bool> balanced;  // absent: the group's default
};

// The number of prompt tokens whose KV exists when the query pass begins: cached, or computed by a
// prefill.
int64_t PrefillEnd(const SequenceSpec& spec);
// Which rank of a group of `ranks` computes which tokens in the sequence's prefill: of the
// document, by spec.strategy; or, behind a cached prefix, of the tokens up to prefill_end, by
// spec.prefix_strategy. Errors: those of MakeShardPlan.
absl::StatusOr<context_parallel::ShardPlan> PlanOf(const SequenceSpec& spec, int ranks);

// Checks a request against the group, replaces `auto` and defaults by values, and cuts max_tokens
// to what max_model_len and the cache leave. Returns where the KV goes if no prefix is cached.
// kInvalidArgument (the message names the field) for a request that can never run.
absl::StatusOr<KvLayout> ResolveRequest(const SchedulerOptions& options, Request& request);

}  // namespace apb::schedule
