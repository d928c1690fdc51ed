// The tensor half of apb and star: local attention with an anchor block and passing blocks. The
// plan alone says which of the two a prefill has.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/context_parallel/apb/compressor.h"
#include "engine/context_parallel/strategy.h"
#include "engine/core/tensor.h"

namespace apb::context_parallel {

// One object serves one prefill; the plan must outlive it. `compressor` may be null if the plan
// passes nothing on. With `overlap`, attention to the anchor and the local keys runs while passing
// blocks travel, and their part is combined afterwards. Without it, one attention call follows the
// exchange. Both compute the same function, rounded differently. A single rank has no exchange, and
// `overlap` changes nothing.
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
  // Pooled scores of one host's local rows, [local rows, n_kv] f32, in `keep`'s memory. `qkv` is
  // absent unless the compressor uses it.
  absl::StatusOr<kernels::TensorView> PooledScores(const LayerCall& call, const HostRows& rows,
                                                   const kernels::TensorView& qkv,
                                                   core::Workspace& keep, kernels::Stream& stream);
  // The keys and values that this rank's hosts pass on: [hosts of a rank, 2, longest, n_kv, d]
  // flattened.
  absl::StatusOr<kernels::TensorView> Select(const LayerCall& call, kernels::Stream& stream);
  // Selects this rank's passing blocks and starts the exchange. After a Wait on the result,
  // passing_view_ holds the passing blocks of all hosts. Null on a single rank: it holds them
  // already.
  absl::StatusOr<std::unique_ptr<comm::Pending>> StartExchange(const LayerCall& call,
                                                               kernels::Stream& stream);
  // Keys (part 0) or values (part 1) that `host` passes on, [count, n_kv, d].
  kernels::TensorView Contribution(int host, int part) const;
  // The passing blocks of the hosts before `host`.
  std::vector<kernels::KeySegment> PassingSegments(int host) const;
  // The anchor, if the host sees it, and the host's local keys.
  std::vector<kernels::KeySegment> OwnSegments(const LayerCall& call, const HostRows& rows) const;
  void AttendAnchor(const LayerCall& call, kernels::Stream& stream);
  // Attention of one host's rows to `keys`. Writes `out` [rows, n_q, d] and, unless absent, `lse`
  // [rows, n_q].
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
  int64_t longest_passing_ = 0;  // largest passing_length of the plan; 0: nothing is passed on
  core::Workspace raw_, indices_, send_, passing_, partials_;
  std::vector<core::Workspace> scores_;           // by local host
  std::vector<kernels::TensorView> score_views_;  // by local host, from BeforeRope to Attend
  // [hosts, 2, longest, n_kv, d] flattened to [hosts * 2 * longest, 1, n_kv, d].
  kernels::TensorView passing_view_;
  double compress_seconds_ = 0;
};

}  // namespace apb::context_parallel
