// Communicator over MPI, for CPU memory only. Ranks that compute on GPUs use NCCL
// (nccl_communicator.h) for device memory.
#pragma once

#include <mpi.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "engine/comm/communicator.h"

namespace apb::comm {

class MpiPending;

class MpiCommunicator : public Communicator {
 public:
  // Connects the ranks that give the same color, in the order of their ranks, on an MPI context of
  // its own. All ranks must call it. MPI must be initialised.
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(absl::Duration deadline, int color);
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool recordable() const override { return false; }
  absl::Status Barrier() override;
  void Abort(std::string reason) override;
  CommunicatorStats stats() const override;

 private:
  friend class MpiPending;
  explicit MpiCommunicator(absl::Duration deadline) : deadline_(deadline) {}
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& collective,
                                                   kernels::Stream& stream) override;
  // DoStart of the operations in which all ranks send equal parts, of all_gather_v, and of
  // send_recv. They set the requests of `pending`.
  absl::Status StartEqual(const Collective& collective, MpiPending& pending);
  absl::Status StartAllGatherV(const Collective& collective, MpiPending& pending);
  absl::Status StartSendRecv(const Collective& collective, MpiPending& pending);
  // Refuses a broken communicator, then waits for the stream's work, which writes the bytes to
  // send.
  absl::Status Begin(kernels::Stream* stream, const char* operation);
  // Turns the result of an MPI call that starts an operation into a status. A failure breaks the
  // communicator.
  absl::Status Started(const char* operation, int code);
  // Waits for the requests and counts the operation. A failure breaks the communicator.
  absl::Status Finish(const char* operation, int64_t bytes_sent, MPI_Request* requests, int count);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  absl::Duration deadline_;
  std::atomic<bool> aborted_{false};
  absl::Status broken_;
  std::map<std::string, CommunicatorStats::Operation> operations_;
};

}  // namespace apb::comm
