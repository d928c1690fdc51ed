// MPI of this process: its start and end, the process's rank, and small messages between leader
// (rank 0) and followers that are not collectives: step plans and statistics. The step thread makes
// all MPI calls.
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
  // Finalises MPI. All ranks must get here; after an error, call AbortGroup instead.
  ~MpiRuntime();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this machine
  int local_size() const { return local_size_; }
  std::string host() const;

  // A communicator between the ranks that give the same color, on its own MPI context. All ranks
  // must call it. `deadline` bounds each collective.
  absl::StatusOr<std::unique_ptr<Communicator>> NewCommunicator(absl::Duration deadline,
                                                                int color = 0);
  // The ranks as a mesh with `tensor_size` ranks in a tensor group. kInvalidArgument if
  // `tensor_size` does not divide the number of ranks.
  absl::StatusOr<Mesh> NewMesh(int tensor_size, absl::Duration deadline);

  // Leader: sends `message` to every follower.
  absl::Status SendPlan(const std::string& message, absl::Duration deadline);
  // Follower: waits for the leader's next message. It polls for a millisecond, then sleeps up to 2
  // ms between polls, so that an idle group costs next to nothing. kUnavailable after `deadline`.
  absl::StatusOr<std::string> ReceivePlan(absl::Duration deadline);
  // Every rank gives a message. The leader gets all messages, by rank; followers get an empty list.
  absl::StatusOr<std::vector<std::string>> GatherToLeader(const std::string& message,
                                                          absl::Duration deadline);

  // Ends all processes of the group at once by MPI_Abort, without finalising. The launcher sees
  // `exit_code`. Every error of a collective or a message must end here, because peers may be
  // blocked.
  [[noreturn]] static void AbortGroup(int exit_code);

 private:
  MpiRuntime() = default;
  struct Context;
  std::unique_ptr<Context> context_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
};

}  // namespace apb::comm
