#include "engine/worker/follower.h"

#include "apb/cluster/v1/worker_group_service.pb.h"
#include "engine/base/status_macros.h"
#include "engine/worker/leader.h"

namespace apb::worker {

std::string SerializedRankStats(const comm::MpiRuntime& mpi,
                                const executor::StepExecutor& executor) {
  cluster::v1::RankStats stats;
  stats.set_rank(mpi.rank());
  stats.set_host(mpi.host());
  const executor::PrefillPhases& phases = executor.phases();
  auto& seconds = *stats.mutable_phase_seconds();
  seconds["projection"] = phases.projection;
  seconds["compress"] = phases.compress;
  seconds["communicate"] = phases.communicate;
  seconds["attend"] = phases.attend;
  seconds["mlp"] = phases.mlp;
  for (const auto& operation : executor.mesh().stats().operations) {
    (*stats.mutable_collective_bytes())[operation.name] = operation.bytes_sent;
    (*stats.mutable_collective_calls())[operation.name] = operation.calls;
    (*stats.mutable_collective_seconds())[operation.name] = operation.seconds;
  }
  stats.set_kv_blocks_total(executor.pool().total_count());
  return stats.SerializeAsString();
}

absl::Status RunFollower(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine) {
  const absl::Duration deadline = absl::Seconds(options.collective_timeout_seconds);
  while (true) {
    // A follower notices a cut link by the leader's silence.
    APB_ASSIGN_OR_RETURN(const std::string bytes, mpi.ReceivePlan(deadline + kStatsWhileIdle));
    APB_ASSIGN_OR_RETURN(const schedule::StepPlan plan, schedule::DecodeStepPlan(bytes));
    APB_RETURN_IF_ERROR(engine.executor->Execute(plan).status());
    if (plan.collect_stats) {
      APB_RETURN_IF_ERROR(
          mpi.GatherToLeader(SerializedRankStats(mpi, *engine.executor), deadline).status());
    }
    if (plan.shutdown) return absl::OkStatus();
  }
}

}  // namespace apb::worker
