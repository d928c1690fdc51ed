// Exact attention over zigzag shards of one document or of a batch of documents. Keys or queries
// travel around the ring of ranks (arXiv 2411.01783; token_ring: 2412.20501). In step s, rank r
// holds the message that began at rank r - s.
//   ring_kv     K and V travel. A rank combines the partial results of its rows step by step.
//   ring_q      Q travels. Partial results stay on the rank that computed them and return to Q's
//               owners at the end. Their memory grows with the rows of all ranks.
//   token_ring  Q travels. A partial result returns while the next one is computed.
//   full        Nothing travels: rank 0 has all rows and all keys.
// A rank computes while a transfer is in flight. The variants differ only in the order of the sums.
//
// A document may begin with a cached prefix, spread over the ranks in any way. All new rows see the
// whole prefix, so a rank's keys are its cached keys followed by its new ones. One message carries
// the rows or keys of all documents; attention runs document by document.
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
  // All ranks call it together, because they tell each other how many tokens of the cached prefixes
  // each of them has. kInternal if these do not add up to the prefixes' lengths.
  static absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> Create(
      std::span<const StrategyDocument> documents, const StrategyDeps& deps, Travels travels,
      kernels::Stream& stream);
  // Bytes of all hosts' positions, which every rank keeps.
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
    // [rows of a host, n_q, d] and [rows of a host, n_q]; lse may be absent.
    kernels::TensorView out, lse;
  };
  RingStrategy(std::span<const StrategyDocument> documents, const StrategyDeps& deps,
               Travels travels, RingShards shards);
  absl::Status CopyToDevice(std::span<const StrategyDocument> documents);

  absl::Status PassKv(const LayerCall& call, kernels::Stream& stream);
  // Sends every rank's queries around the ring. Calls visit(step, owner, q) for each rank's
  // queries, beginning with this rank's own, while the next ones are in flight.
  using Visit = absl::FunctionRef<absl::Status(int, int, const kernels::TensorView&)>;
  absl::Status ForEachVisitor(const LayerCall& call, Visit visit, kernels::Stream& stream);
  absl::Status PassQ(const LayerCall& call, kernels::Stream& stream);
  absl::Status PassTokens(const LayerCall& call, kernels::Stream& stream);

  // This rank's keys as one message, [2, keys, n_kv, d].
  absl::StatusOr<kernels::TensorView> KeyMessage(const LayerCall& call, core::Workspace& memory,
                                                 kernels::Stream& stream);
  // This rank's keys, for strategies in which keys do not travel. Views of the call's k and v if no
  // key of this rank is cached, a copy otherwise.
  absl::StatusOr<Keys> HomeKeys(const LayerCall& call, kernels::Stream& stream);
  // Attention of host `query_host`'s rows over host `key_host`'s keys.
  void AttendPart(const LayerCall& call, int query_host, const kernels::TensorView& q, int key_host,
                  const Keys& keys, const Result& result, kernels::Stream& stream);
  // Starts to send `held` to the next rank of the ring and to receive `next` from the previous one.
  absl::StatusOr<std::unique_ptr<comm::Pending>> PassOn(const kernels::TensorView& held,
                                                        const kernels::TensorView& next,
                                                        kernels::Stream& stream);
  // The rank `distance` places before this one in the ring (after it if negative).
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
  bool has_cached_ = false;                 // this rank has tokens of a cached prefix
  std::vector<core::Tensor> cached_slots_;  // by document
  core::Tensor positions_;                  // [rows of all hosts] i32, host after host
  std::vector<int64_t> position_begin_;     // by host
  core::Workspace travelling_[2];           // the message that this rank holds, and the next one
  core::Workspace home_;                    // this rank's keys
  core::Workspace partials_;                // partial results of this rank's rows
  core::Workspace visitors_;                // partial results of other ranks' rows
};

}  // namespace apb::context_parallel
