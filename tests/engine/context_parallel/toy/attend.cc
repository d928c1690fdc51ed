#include <vector>

#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategy.h"
#include "engine/core/tensor.h"
#include "tests/engine/context_parallel/toy/toy.h"

namespace apb::context_parallel {
namespace {

using kernels::KeySegment;
using kernels::TensorView;
using kernels::Visibility;

class ToyStrategy : public ContextParallelStrategy {
 public:
  ToyStrategy(const ShardPlan& plan, const StrategyDeps& deps)
      : plan_(plan),
        backend_(deps.backend),
        communicator_(deps.communicator),
        longest_(plan.hosts[0].local_length()),
        send_(deps.backend),
        all_(deps.backend) {}

  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(const LayerCall&, const TensorView&, kernels::Stream&) override {
    return absl::InternalError("gather_kv does not read projections before RoPE");
  }

  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override {
    if (longest_ == 0) return absl::OkStatus();
    const int64_t heads = call.k.shape[1], d = call.k.shape[2], rows = call.k.rows();
    // A rank sends its keys, then its values, each as long as the longest shard's.
    APB_ASSIGN_OR_RETURN(const TensorView part, send_.Get(call.k.dtype, {2 * longest_, heads, d}));
    backend_.Copy(call.k, part.Rows(0, rows), stream);
    backend_.Copy(call.v, part.Rows(longest_, longest_ + rows), stream);
    APB_ASSIGN_OR_RETURN(const TensorView all,
                         all_.Get(call.k.dtype, {communicator_.size() * 2 * longest_, heads, d}));
    APB_RETURN_IF_ERROR(communicator_.AllGather(part, all, stream));
    if (rows == 0) return absl::OkStatus();
    std::vector<KeySegment> keys;
    for (int host = 0; host <= communicator_.rank(); ++host) {
      const int64_t first = host * 2 * longest_, count = plan_.hosts[host].local_length();
      keys.push_back({.k = all.Rows(first, first + count),
                      .v = all.Rows(first + longest_, first + longest_ + count),
                      .visible_to_group = {Visibility::kAll, Visibility::kAll}});
    }
    keys.back().positions = call.positions;
    keys.back().visible_to_group = {Visibility::kCausal, Visibility::kCausal};
    backend_.Attention({.q = call.q,
                        .q_positions = call.positions,
                        .keys = keys,
                        .scale = call.scale,
                        .out = call.out},
                       stream);
    return absl::OkStatus();
  }

 private:
  const ShardPlan& plan_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const int64_t longest_;  // tokens of the longest shard
  core::Workspace send_, all_;
};

}  // namespace

int64_t ToyPrefillBytes(const MemoryCall& call) {
  return (1 + call.ranks) * call.plan.hosts[0].local_length() * call.model.kv_width() *
         call.model.element_bytes;
}

absl::StatusOr<std::unique_ptr<ContextParallelStrategy>> CreateToy(
    std::span<const StrategyDocument> documents, const StrategyDeps& deps, kernels::Stream&) {
  return std::make_unique<ToyStrategy>(*documents[0].plan, deps);
}

}  // namespace apb::context_parallel
