// The leader's gRPC stream to apb-server. Commands come in through a queue; events go out at once.
// A broken stream ends the group; the server then starts it again.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "apb/cluster/v1/worker_group_service.grpc.pb.h"
#include "engine/base/bounded_queue.h"

namespace apb::worker {

class ControlChannel {
 public:
  // Connects and sends Hello. kUnavailable if the server does not accept it within `deadline`.
  static absl::StatusOr<std::unique_ptr<ControlChannel>> Connect(const std::string& server,
                                                                 const cluster::v1::Hello& hello,
                                                                 absl::Duration deadline);
  ~ControlChannel();

  // The next command, or nothing after `timeout`. closed() tells whether the stream has ended.
  std::optional<cluster::v1::ToWorker> Next(absl::Duration timeout) {
    return commands_.Pop(timeout);
  }
  std::vector<cluster::v1::ToWorker> DrainNow() { return commands_.DrainNow(); }
  bool closed() const { return commands_.closed(); }
  // Sends a message from the step thread. False: the stream is broken.
  bool Send(const cluster::v1::FromWorker& message) { return stream_->Write(message); }
  // Announces that no more events follow, and waits for the server's status.
  absl::Status Finish();

 private:
  ControlChannel() = default;
  void ReadLoop();

  // Far more than the server lets wait: a full queue means that something is wrong.
  base::BoundedQueue<cluster::v1::ToWorker> commands_{1 << 16};
  grpc::ClientContext context_;
  std::unique_ptr<cluster::v1::WorkerGroupService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<cluster::v1::FromWorker, cluster::v1::ToWorker>> stream_;
  std::thread reader_;
  bool finished_ = false;
};

}  // namespace apb::worker
