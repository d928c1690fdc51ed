// Exact attention by trading places (DeepSpeed-Ulysses, arXiv 2309.14509): before attention each
// rank gives away all heads of its tokens but its share, and gets its share of the heads of all
// tokens; afterwards outputs go back. Query heads must divide among the ranks so that a rank's
// share lies within KV heads evenly; where ranks are more than KV heads, several ranks get the same
// KV head.
#pragma once

#include <memory>
#include <vector>

#include "engine/context_parallel/strategy.h"
#include "engine/core/tensor.h"

namespace apb::context_parallel {

// One object serves one prefill, by a plan of one block for each rank.
class UlyssesStrategy : public ContextParallelStrategy {
 public:
  // kInvalidArgument where the heads do not divide among the ranks.
  static absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> Create(
      const ShardPlan& plan, int64_t query_heads, int64_t kv_heads, kernels::Backend& backend,
      comm::Communicator& communicator);

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override;

 private:
  UlyssesStrategy(int64_t query_heads, int64_t kv_heads, kernels::Backend& backend,
                  comm::Communicator& communicator);
  // Heads of rank `rank`: [first, first + count).
  struct Heads {
    int64_t first, count;
  };
  Heads QueryHeadsOf(int rank) const { return {rank * query_share_, query_share_}; }
  Heads KvHeadsOf(int rank) const { return {rank * query_share_ / group_, kv_share_}; }
  // `mine` [T, heads, d] of all heads to `all` [n, share, d] of this rank's share, by tokens.
  absl::Status ToHeads(const kernels::TensorView& mine,
                       Heads (UlyssesStrategy::*heads_of)(int) const,
                       const kernels::TensorView& all, kernels::Stream& stream);
  // And back: `all` [n, share, d] to `mine` [T, heads, d].
  absl::Status ToTokens(const kernels::TensorView& all, const kernels::TensorView& mine,
                        kernels::Stream& stream);

  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const int rank_, ranks_;
  const int64_t group_;                   // query heads of a KV head
  const int64_t query_share_, kv_share_;  // heads of a rank
  core::Tensor positions_;                // 0, 1, 2, ... n - 1
  std::vector<int64_t> row_begin_;        // first token of each rank
  core::Workspace packed_, q_, k_, v_, out_;
};

}  // namespace apb::context_parallel
