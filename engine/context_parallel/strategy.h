// The tensor half of a strategy: the attention of one layer of a prefill, on one rank.
// strategy_info.h says which files a new strategy consists of.
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

// The local rows of one host: [begin, end) of the rank's rows.
struct HostRows {
  int host = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// One document of a prefill as its strategy sees it.
struct StrategyDocument {
  const ShardPlan* plan = nullptr;  // must outlive the strategy
  // KV cache slots of this rank's share of the cached prefix, whose tokens come before the plan's.
  std::vector<int64_t> cached_slots;
  int64_t prefix_length = 0;  // tokens of the cached prefix on all ranks together
};

// What a strategy computes with. All of it must outlive the strategy.
struct StrategyDeps {
  int64_t query_heads = 0, kv_heads = 0;
  const cache::PagedKvCache& cache;
  kernels::Backend& backend;
  comm::Communicator& communicator;  // the cp_group
  // Name of the compressor, which chooses the tokens to pass on (apb/compressor.h). Empty if the
  // plan passes nothing on.
  std::string_view compressor;
  const model::Weights* weights = nullptr;  // for a compressor
  comm::Communicator* tensor = nullptr;     // the tensor group; null without tensor parallelism
  // Attention to the rank's own keys runs while passing blocks travel. The same on all ranks.
  bool overlap_passing = false;
};

// One layer of one prefill on one rank. The rank's rows are the anchor's rows [0, anchor_rows),
// then the local rows of its hosts, in order. anchor_rows is 0 on ranks that need no anchor. The
// rows of several documents (StrategyInfo::can_batch) follow one another.
struct LayerCall {
  int layer = 0;
  int64_t anchor_rows = 0;
  std::span<const HostRows> hosts;  // this rank's hosts of the first document
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
  // Whether the layer must call BeforeRope: the strategy scores tokens by q, k, v before RoPE.
  virtual bool WantsPreRope(int layer) const = 0;
  // `qkv` is as in LayerAttention::BeforeRope. In `call`, q, k, v and out are absent.
  virtual absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                                  kernels::Stream& stream) = 0;
  virtual absl::Status Attend(const LayerCall& call, kernels::Stream& stream) = 0;
  // The part of Attend's stream time that went into scoring and selecting the tokens to pass on, up
  // to the stream's last synchronization.
  virtual double compress_seconds() const { return 0; }
};

}  // namespace apb::context_parallel
