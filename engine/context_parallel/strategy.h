// The tensor half of a strategy: the attention of one layer of a prefill, on one rank. What a new
// strategy touches: strategy_info.h.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/cache/paged_kv_cache.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/shard_plan.h"
#include "engine/context_parallel/strategy_info.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::context_parallel {

// Local rows of one host within the rank's rows.
struct HostRows {
  int host = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// One document of a prefill as its strategy sees it.
struct StrategyDocument {
  const ShardPlan* plan = nullptr;  // must outlive the strategy
  // Where this rank's share of the cached prefix lies in the KV cache; its tokens come before those
  // of the plan.
  std::vector<int64_t> cached_slots;
  int64_t prefix_length = 0;  // tokens of the cached prefix on all ranks together
};

// What a strategy computes with; all of it outlives the strategy.
struct StrategyDeps {
  int64_t query_heads = 0, kv_heads = 0;
  const cache::PagedKvCache& cache;
  kernels::Backend& backend;
  comm::Communicator& communicator;  // the context group
  // How what is passed on is chosen (apb/compressor.h); empty where the plan passes nothing on.
  std::string_view compressor;
  const model::Weights* weights = nullptr;  // for a compressor
  comm::Communicator* tensor = nullptr;     // the tensor parallel group, if there is one
  // Attention to what is here already goes on while passing blocks travel; the same on all ranks.
  bool overlap_passing = false;
};

// One layer of one prefill on one rank. The rank's rows are [anchor ; local of its hosts in order];
// the anchor rows [0, anchor_rows) are absent (0) on ranks that need none. With several documents
// (StrategyInfo::can_batch) they are one behind the other.
struct LayerCall {
  int layer = 0;
  int64_t anchor_rows = 0;
  std::span<const HostRows> hosts;  // of the first document
  float scale = 0;
  kernels::TensorView positions;  // [T] i32
  kernels::TensorView q;          // [T, n_q, d], after RoPE
  kernels::TensorView k;          // [T, n_kv, d], after RoPE
  kernels::TensorView v;          // [T, n_kv, d]
  kernels::TensorView out;        // [T, n_q, d]; every row must be written
};

class ContextParallelStrategy {
 public:
  virtual ~ContextParallelStrategy() = default;
  // Whether BeforeRope is needed in this layer (it is not where nothing is passed on).
  virtual bool WantsPreRope(int layer) const = 0;
  // qkv as in LayerAttention::BeforeRope; `call` has q, k, v and out absent.
  virtual absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                                  kernels::Stream& stream) = 0;
  virtual absl::Status Attend(const LayerCall& call, kernels::Stream& stream) = 0;
  // Of the stream's time in Attend, up to its last synchronization: scores and selection of what is
  // passed on.
  virtual double compress_seconds() const { return 0; }
};

}  // namespace apb::context_parallel
