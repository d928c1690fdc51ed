// Exact attention over zigzag shards, with what travels around the ring of ranks (arXiv 2411.01783;
// token_ring: 2412.20501). In step s rank r meets what began at rank r - s.
//   ring_kv     K and V travel; the rank merges its rows' partial results as they come.
//   ring_q      Q travels; partial results wait where they were made and return to the owners of Q
//               in the end. Memory for them grows with the whole document.
//   token_ring  Q travels; a partial result returns while the next one is computed.
// A transfer is under way while a rank computes. All give the same numbers but for the order of the
// sums. Which of them it is says the plan (ShardPlan::exchange).
#pragma once

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/attention/partial_results.h"
#include "engine/attention/strategy.h"
#include "engine/core/tensor.h"

namespace apb::attention {

// One object serves one prefill; the plan, of one host for each rank, must outlive it.
class RingStrategy : public ContextParallelStrategy {
 public:
  static absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> Create(
      const ShardPlan& plan, kernels::Backend& backend, parallel::Communicator& communicator);

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override;

 private:
  RingStrategy(const ShardPlan& plan, kernels::Backend& backend,
               parallel::Communicator& communicator);
  absl::Status PassKv(const LayerCall& call, kernels::Stream& stream);
  // Sends every rank's rows around the ring; calls visit(step, owner, q) for each, this rank's own
  // first, while the next are on their way.
  using Visit = absl::FunctionRef<absl::Status(int, int, const kernels::TensorView&)>;
  absl::Status ForEachVisitor(const LayerCall& call, Visit visit, kernels::Stream& stream);
  absl::Status PassQ(const LayerCall& call, kernels::Stream& stream);
  absl::Status PassTokens(const LayerCall& call, kernels::Stream& stream);

  // Attention of host `query_host`'s rows over host `key_host`'s keys, to part `part` of `results`.
  void AttendPart(const LayerCall& call, int query_host, const kernels::TensorView& q, int key_host,
                  const kernels::TensorView& k, const kernels::TensorView& v,
                  const PartialResults& results, int64_t part, kernels::Stream& stream);
  // Starts to pass what began at rank (rank - step) on, and to receive what began one further back.
  absl::StatusOr<std::unique_ptr<parallel::Pending>> PassOn(const kernels::TensorView& held,
                                                            const kernels::TensorView& next,
                                                            kernels::Stream& stream);
  // The rank that is `distance` behind in the ring (negative: ahead).
  int Behind(int distance) const { return ((rank_ - distance) % ranks_ + ranks_) % ranks_; }
  int64_t RowsOf(int host) const { return plan_.hosts[host].local_length(); }
  kernels::TensorView PositionsOf(int host) const;

  const ShardPlan& plan_;
  kernels::Backend& backend_;
  parallel::Communicator& communicator_;
  const int rank_, ranks_;
  core::Tensor positions_;               // of all hosts' rows, host after host
  std::vector<int64_t> position_begin_;  // by host
  core::Workspace travelling_[2];        // what this rank holds, and what comes next
  core::Workspace partials_;             // of this rank's rows
  core::Workspace visitors_;             // of other ranks' rows
};

}  // namespace apb::attention
