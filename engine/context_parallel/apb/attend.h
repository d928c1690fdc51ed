// The tensor half of apb and star: local attention with an anchor block, and with passing blocks.
// The plan alone says which of them a prefill has.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/context_parallel/apb/compressor.h"
#include "engine/context_parallel/strategy.h"
#include "engine/core/tensor.h"

namespace apb::context_parallel {

// One object serves one prefill; the plan must outlive it. `compressor` may be null where the plan
// passes nothing on. `overlap`: attention to anchor and block runs while passing blocks travel, the
// part over passing blocks is merged in behind it; otherwise all is one call after the exchange.
// The same function, rounded differently. Without another rank there is nothing to wait for.
class AnchorStrategy : public ContextParallelStrategy {
 public:
  AnchorStrategy(const ShardPlan& plan, int64_t kv_heads, std::unique_ptr<Compressor> compressor,
                 kernels::Backend& backend, comm::Communicator& communicator, bool overlap);

  bool WantsPreRope(int layer) const override;
  absl::Status BeforeRope(const LayerCall& call, const kernels::TensorView& qkv,
                          kernels::Stream& stream) override;
  absl::Status Attend(const LayerCall& call, kernels::Stream& stream) override;
  double compress_seconds() const override { return compress_seconds_; }

 private:
  // Scores of one host's local rows, pooled: [local rows, n_kv] f32.
  absl::StatusOr<kernels::TensorView> PooledScores(const LayerCall& call, const HostRows& rows,
                                                   const kernels::TensorView& qkv,
                                                   core::Workspace& keep, kernels::Stream& stream);
  // What this rank's hosts pass on: [hosts of a rank, 2, longest, n_kv, d] flattened.
  absl::StatusOr<kernels::TensorView> Select(const LayerCall& call, kernels::Stream& stream);
  // Selects and starts the exchange. passing_view_ holds the contributions of all hosts when what
  // is returned has been waited for (null: at once).
  absl::StatusOr<std::unique_ptr<comm::Pending>> StartExchange(const LayerCall& call,
                                                               kernels::Stream& stream);
  // Contribution of one host: keys or values [count, n_kv, d].
  kernels::TensorView Contribution(int host, int part) const;
  // What the hosts before `host` pass on.
  std::vector<kernels::KeySegment> PassingSegments(int host) const;
  // The anchor, where the host sees it, and its own block.
  std::vector<kernels::KeySegment> OwnSegments(const LayerCall& call, const HostRows& rows) const;
  void AttendAnchor(const LayerCall& call, kernels::Stream& stream);
  // Rows of one host to `keys`; results [rows, n_q, d], and lse [rows, n_q] unless absent.
  void AttendRows(const LayerCall& call, const HostRows& rows,
                  std::span<const kernels::KeySegment> keys, const kernels::TensorView& out,
                  const kernels::TensorView& lse, kernels::Stream& stream);
  absl::Status AttendOverlapped(const LayerCall& call, comm::Pending& exchange,
                                kernels::Stream& stream);

  const ShardPlan& plan_;
  const int64_t kv_heads_;
  std::unique_ptr<Compressor> compressor_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const bool overlap_;
  int64_t longest_passing_ = 0;  // largest passing_length of the plan; 0 = nothing is passed on
  core::Workspace raw_, indices_, send_, passing_, partials_;
  std::vector<core::Workspace> scores_;           // by local host
  std::vector<kernels::TensorView> score_views_;  // by local host, from BeforeRope to Attend
  kernels::TensorView
      passing_view_;  // [hosts (ranks x hosts of a rank), 2, longest, n_kv, d] flattened
  double compress_seconds_ = 0;
};

}  // namespace apb::context_parallel
