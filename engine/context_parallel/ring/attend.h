// Exact attention over zigzag shards of one document or a batch of them, with what travels around
// the ring of ranks (arXiv 2411.01783; token_ring: 2412.20501). In step s rank r meets what began
// at rank r - s.
//   ring_kv     K and V travel; the rank merges its rows' partial results as they come.
//   ring_q      Q travels; partial results wait where they were made and return to the owners of Q
//               in the end. Memory for them grows with all the rows.
//   token_ring  Q travels; a partial result returns while the next one is computed.
//   full        nothing travels: rank 0 has all rows and all keys.
// A transfer is under way while a rank computes. All give the same numbers but for the order of the
// sums.
//
// A document may begin with a cached prefix, spread over the ranks in any way: all its rows see all
// of it, so a rank's share of keys is (cached ++ new). One message carries the rows or keys of all
// documents; attention goes document by document.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/context_parallel/partial_results.h"
#include "engine/context_parallel/ring/ring_shards.h"
#include "engine/context_parallel/strategy.h"
#include "engine/core/tensor.h"

namespace apb::context_parallel {

// One object serves one prefill; plans and cache must outlive it.
class RingStrategy : public ContextParallelStrategy {
 public:
  enum class Travels { kNothing, kKeys, kQueries, kQueriesAndResults };
  // The ranks tell each other what they keep of cached prefixes: all create it together.
  static absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> Create(
      std::span<const StrategyDocument> documents, const StrategyDeps& deps, Travels travels,
      kernels::Stream& stream);
  // Bytes of the positions of all rows, which every rank has.
  static int64_t PositionBytes(const ShardPlan& plan) { return plan.document_length() * 4; }

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override;

 private:
  struct Keys {
    kernels::TensorView k, v;  // [keys of a host, n_kv, d]
  };
  struct Result {
    kernels::TensorView out, lse;  // [rows of a host, n_q, d], [.., n_q]; lse may be absent
  };
  RingStrategy(std::span<const StrategyDocument> documents, const StrategyDeps& deps,
               Travels travels, RingShards shards);
  absl::Status CopyToDevice(std::span<const StrategyDocument> documents);

  absl::Status PassKv(const LayerCall& call, kernels::Stream& stream);
  // Sends every rank's rows around the ring; calls visit(step, owner, q) for each, this rank's own
  // first, while the next are on their way.
  using Visit = absl::FunctionRef<absl::Status(int, int, const kernels::TensorView&)>;
  absl::Status ForEachVisitor(const LayerCall& call, Visit visit, kernels::Stream& stream);
  absl::Status PassQ(const LayerCall& call, kernels::Stream& stream);
  absl::Status PassTokens(const LayerCall& call, kernels::Stream& stream);

  // This rank's keys as one message, [2, keys, n_kv, d].
  absl::StatusOr<kernels::TensorView> KeyMessage(const LayerCall& call, core::Workspace& memory,
                                                 kernels::Stream& stream);
  // This rank's keys where they stay at home: not copied where nothing is cached.
  absl::StatusOr<Keys> HomeKeys(const LayerCall& call, kernels::Stream& stream);
  // Attention of host `query_host`'s rows over host `key_host`'s keys.
  void AttendPart(const LayerCall& call, int query_host, const kernels::TensorView& q, int key_host,
                  const Keys& keys, const Result& result, kernels::Stream& stream);
  // Starts to pass what began at rank (rank - step) on, and to receive what began one further back.
  absl::StatusOr<std::unique_ptr<comm::Pending>> PassOn(const kernels::TensorView& held,
                                                        const kernels::TensorView& next,
                                                        kernels::Stream& stream);
  // The rank that is `distance` behind in the ring (negative: ahead).
  int Behind(int distance) const { return ((rank_ - distance) % ranks_ + ranks_) % ranks_; }
  int64_t RowsOf(int host) const { return shards_.rows(host); }
  kernels::TensorView PositionsOf(int host) const;

  const std::vector<const ShardPlan*> plans_;
  const Travels travels_;
  const RingShards shards_;
  const cache::PagedKvCache& cache_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const int rank_, ranks_;                  // ranks of the ring: 1 where nothing travels
  bool has_cached_ = false;                 // some document's prefix is partly on this rank
  std::vector<core::Tensor> cached_slots_;  // by document
  core::Tensor positions_;                  // of all hosts' rows, host after host
  std::vector<int64_t> position_begin_;     // by host
  core::Workspace travelling_[2];           // what this rank holds, and what comes next
  core::Workspace home_;                    // this rank's keys
  core::Workspace partials_;                // of this rank's rows
  core::Workspace visitors_;                // of other ranks' rows
};

}  // namespace apb::context_parallel
