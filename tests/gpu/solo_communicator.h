// One rank of a group whose other ranks do not exist. Its collectives send nothing, but count the
// bytes that would be sent. So the work of each rank of a large group can be timed alone on one
// device; the time of the links is computed from the counts.
#pragma once

#include <map>
#include <string>

#include "engine/comm/communicator.h"

namespace apb::bench {

class SoloCommunicator : public comm::Communicator {
 public:
  SoloCommunicator(int rank, int size, kernels::Backend& backend)
      : rank_(rank), size_(size), backend_(backend) {}

  // If true, a receive buffer is filled with this rank's own data, so that kernels read real
  // numbers and not the memory's earlier contents. If false, it is left as it is.
  void Echo(bool echo) { echo_ = echo; }

  int64_t messages() const { return messages_; }
  int64_t bytes_sent() const;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status Barrier() override { return absl::OkStatus(); }
  bool recordable() const override { return false; }  // the bytes of a launch could not be counted
  void Abort(std::string) override {}
  comm::CommunicatorStats stats() const override;

 private:
  absl::StatusOr<std::unique_ptr<comm::Pending>> DoStart(const comm::Collective& collective,
                                                         kernels::Stream& stream) override;
  // Fills `recv` with repeated copies of `send`.
  void Fill(const kernels::TensorView& send, const kernels::TensorView& recv,
            kernels::Stream& stream);

  const int rank_, size_;
  kernels::Backend& backend_;
  bool echo_ = true;
  int64_t messages_ = 0;
  std::map<std::string, comm::CommunicatorStats::Operation> operations_;
};

}  // namespace apb::bench
