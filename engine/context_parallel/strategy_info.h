// One row of the table of strategies (strategies.cc): all that the scheduler, the executor and the
// server know of a way to spread the prefill of documents over hosts. Pure: the types of tensors,
// ranks and devices are only named, so that the scheduler includes none of them.
//
// A new strategy is a folder with
//   x.h         what its row names
//   plan.cc     who computes which tokens
//   cost.cc     what that takes: work of a rank, traffic of a layer
//   attend.cc   the attention of one layer (strategy.h), and the memory that it takes
// one row in strategies.cc, and the sources in CMakeLists.txt. A folder may take parts of another
// one: star has apb's attention. tests/engine/context_parallel/toy is an example. `auto` may choose
// it then, and clients may name it: groups tell the server what they run. What no field below can
// say is not a reason to test a name elsewhere: it is a new field.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/context_parallel/shard_plan.h"

namespace apb::kernels {
class Stream;
}

namespace apb::context_parallel {

class ContextParallelStrategy;  // strategy.h
struct StrategyDeps;
struct StrategyDocument;

// How many hosts a document has.
enum class HostsRule {
  kOne,             // one, on rank 0, whatever is asked for
  kOneOnEachRank,   // as many as ranks
  kSameOnEachRank,  // as asked for: a multiple of the ranks
};

// What one rank computes in one layer.
struct Work {
  double rows = 0;         // those of the anchor included
  double scored_rows = 0;  // rows of which some are passed on
  double pairs = 0;        // of queries and keys that they see
};

// The longest time that a rank waits for links in one layer, and what all ranks send in it.
struct Traffic {
  double waiting_seconds = 0;
  double bytes = 0;
};

struct TrafficCall {
  const ShardPlan& plan;  // with at least one token
  int ranks = 2;          // more than one
  // Tokens before the plan's (PromptLayout::cached_length), spread evenly over the ranks.
  int64_t cached_tokens = 0;
  double attention_seconds = 0;  // of one layer on the slowest rank: transfers may hide behind it
  const ModelShape& model;
  const MachineSpeed& speed;
};

struct MemoryCall {
  const ShardPlan& plan;
  int ranks = 1, rank = 0;
  const ModelShape& model;
  std::string_view compressor;   // empty where the plan passes nothing on
  bool overlap_passing = false;  // StrategyDeps::overlap_passing
};

// What a strategy has that leaves out a field.
inline absl::Status SupportsAllModels(const ModelShape&, int) { return absl::OkStatus(); }
inline bool NeedsNoAnchor(const ShardPlan&, int, int, std::string_view) { return false; }
inline Traffic SendsNothing(const TrafficCall&) { return {}; }

struct StrategyInfo {
  std::string_view name;
  bool exact = false;  // document rows attend to all earlier tokens
  HostsRule hosts = HostsRule::kSameOnEachRank;
  bool can_batch = false;           // several documents can be computed together, in one prefill
  bool starts_from_prefix = false;  // PromptLayout::cached_length may be more than 0
  bool can_balance = false;         // has a use for StrategyOptions::row_cost_pairs
  // The place among the exact, or the approximate, strategies in which `auto` tries them; 0: never.
  int auto_order = 0;

  // kInvalidArgument (saying why) where it cannot run such a model on so many ranks of a group.
  absl::Status (*supports)(const ModelShape& model, int ranks) = SupportsAllModels;
  // The hosts' tokens, for arguments that MakeShardPlan has checked.
  ShardPlan (*plan)(const PromptLayout& layout, const StrategyOptions& options) = nullptr;
  // Whether `rank` computes the rows of the plan's anchor.
  bool (*needs_anchor)(const ShardPlan& plan, int ranks, int rank,
                       std::string_view compressor) = NeedsNoAnchor;
  Work (*work)(const ShardPlan& plan, int ranks, int rank) = nullptr;
  Traffic (*traffic)(const TrafficCall& call) = SendsNothing;
  // Bytes that `create` and the strategy's attention take on a device, at most, for a document
  // without a cached prefix.
  int64_t (*prefill_bytes)(const MemoryCall& call) = nullptr;
  // The attention of one prefill. All ranks call it together, with as many documents as can_batch
  // allows, of plans of this strategy; the plans and what `deps` refers to outlive the result.
  absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> (*create)(
      std::span<const StrategyDocument> documents, const StrategyDeps& deps,
      kernels::Stream& stream) = nullptr;
};

}  // namespace apb::context_parallel
