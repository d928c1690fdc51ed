// One row of the table of strategies (strategies.cc). A strategy spreads the prefill of documents
// over hosts; scheduler, executor and server know it by this row only. Pure: the header only
// declares the types of tensors, ranks and devices, so that the scheduler includes none of them.
//
// A new strategy is a folder with
//   x.h         the functions that its row names
//   plan.cc     which host computes which tokens
//   cost.cc     the work of a rank, the traffic of a layer
//   attend.cc   the attention of one layer (strategy.h), and the memory that it takes
// one row in strategies.cc, and the sources in CMakeLists.txt. A folder may use parts of another
// one: star has apb's attention. tests/engine/context_parallel/toy is an example. `auto` may then
// choose the strategy, and clients may name it: groups tell the server which strategies they run.
// If no field below can express a property, add a field; do not test a strategy's name elsewhere.
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

// The number of hosts of a document.
enum class HostsRule {
  kOne,             // one, on rank 0, whatever the request says
  kOneOnEachRank,   // as many as there are ranks
  kSameOnEachRank,  // as the request says: a multiple of the ranks
};

// One rank's work in one layer.
struct Work {
  double rows = 0;         // the anchor's included
  double scored_rows = 0;  // rows that a compressor scores
  double pairs = 0;        // visible query-key pairs
};

// The traffic of one layer.
struct Traffic {
  double waiting_seconds = 0;  // the longest time that a rank waits for links
  double bytes = 0;            // sent by all ranks together
};

struct TrafficCall {
  const ShardPlan& plan;  // with at least one token
  int ranks = 2;          // more than one
  // Tokens before the plan's (PromptLayout::cached_length), spread evenly over the ranks.
  int64_t cached_tokens = 0;
  double attention_seconds = 0;  // one layer's, on the slowest rank: transfers may hide behind it
  const ModelShape& model;
  const MachineSpeed& speed;
};

struct MemoryCall {
  const ShardPlan& plan;
  int ranks = 1, rank = 0;
  const ModelShape& model;
  std::string_view compressor;   // empty if the plan passes nothing on
  bool overlap_passing = false;  // StrategyDeps::overlap_passing
};

// Defaults for the function fields that a row may leave out.
inline absl::Status SupportsAllModels(const ModelShape&, int) { return absl::OkStatus(); }
inline bool NeedsNoAnchor(const ShardPlan&, int, int, std::string_view) { return false; }
inline Traffic SendsNothing(const TrafficCall&) { return {}; }

struct StrategyInfo {
  std::string_view name;
  bool exact = false;  // document rows attend to all earlier tokens
  HostsRule hosts = HostsRule::kSameOnEachRank;
  bool can_batch = false;           // one prefill can compute several documents
  bool starts_from_prefix = false;  // PromptLayout::cached_length may be more than 0
  bool can_balance = false;         // uses StrategyOptions::row_cost_pairs
  // Place in the order in which `auto` tries the exact, or the approximate, strategies. 0: never.
  int auto_order = 0;

  // kInvalidArgument (the message says why) if the strategy cannot run the model on `ranks` ranks.
  absl::Status (*supports)(const ModelShape& model, int ranks) = SupportsAllModels;
  // The plan. MakeShardPlan has checked the arguments and sets ShardPlan::strategy.
  ShardPlan (*plan)(const PromptLayout& layout, const StrategyOptions& options) = nullptr;
  // Whether `rank` computes the rows of the plan's anchor.
  bool (*needs_anchor)(const ShardPlan& plan, int ranks, int rank,
                       std::string_view compressor) = NeedsNoAnchor;
  Work (*work)(const ShardPlan& plan, int ranks, int rank) = nullptr;
  Traffic (*traffic)(const TrafficCall& call) = SendsNothing;
  // An upper bound of the device memory, in bytes, that `create` and the strategy's attention take
  // for a document without a cached prefix.
  int64_t (*prefill_bytes)(const MemoryCall& call) = nullptr;
  // Creates the attention of one prefill. All ranks call it together, with plans of this strategy:
  // one document, or several with can_batch. The plans and what `deps` refers to must outlive the
  // result.
  absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> (*create)(
      std::span<const StrategyDocument> documents, const StrategyDeps& deps,
      kernels::Stream& stream) = nullptr;
};

}  // namespace apb::context_parallel
