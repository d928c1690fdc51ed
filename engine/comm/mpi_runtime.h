// MPI of this process: start and end, who we are, and small messages between leader (rank 0) and
// followers that are not collectives: step plans and statistics. All MPI calls come from the step
// thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/comm/mesh.h"

namespace apb::comm {

class MpiRuntime {
 public:
  // Initialises MPI; at most one at a time in a process.
  static absl::StatusOr<std::unique_ptr<MpiRuntime>> Start(int* argc, char*** argv);
  // Finalises MPI (all ranks must get here; after an error call AbortGroup instead).
  ~MpiRuntime();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this machine
  int local_size() const { return local_size_; }
  std::string host() const;

  // A communicator between the ranks that give the same color (all of them call), on its own MPI
  // context. `deadline` bounds each collective.
  absl::StatusOr<std::unique_ptr<Communicator>> NewCommunicator(absl::Duration deadline,
                                                                int color = 0);
  // The ranks as a mesh with `tensor_size` ranks in a tensor group. kInvalidArgument where that
  // does not divide the ranks.
  absl::StatusOr<Mesh> NewMesh(int tensor_size, absl::Duration deadline);

  // Leader: gives `message` to every follower.
  absl::Status SendPlan(const std::string& message, absl::Duration deadline);
  // Follower: waits for the next one. Polls for a millisecond, then sleeps between looks, up to 2
  // ms, so that an idle group costs next to nothing. kUnavailable after `deadline`.
  absl::StatusOr<std::string> ReceivePlan(absl::Duration deadline);
  // Every rank gives a message; the leader gets all, by rank (followers get an empty list).
  absl::StatusOr<std::vector<std::string>> GatherToLeader(const std::string& message,
                                                          absl::Duration deadline);

  // Ends all processes of the group at once by MPI_Abort, without finalising; the launcher sees
  // `exit_code`. The way out after every error of a collective or a message: peers may be blocked.
  [[noreturn]] static void AbortGroup(int exit_code);

 private:
  MpiRuntime() = default;
  struct Context;
  std::unique_ptr<Context> context_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
};

}  // namespace apb::comm
