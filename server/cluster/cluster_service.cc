// One reactor per connected group.
#include "server/cluster/cluster_service.h"

#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/log.h"
#include "server/request/grpc_status.h"

namespace apb::cluster {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using Stream = grpc::ServerBidiReactor<FromWorker, ToWorker>;

// The sending half of the stream. It outlives the RPC while somebody still refers to the group;
// Send then does nothing.
class Connection final : public GroupConnection {
 public:
  Connection(Stream* stream, grpc::CallbackServerContext* context)
      : stream_(stream), context_(context) {}

  void Send(ToWorker message) override {
    absl::MutexLock lock(&mutex_);
    if (stream_ == nullptr || finishing_) return;
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) stream_->StartWrite(&queue_.front());
  }

  void Close(const absl::Status& why) override {
    absl::MutexLock lock(&mutex_);
    if (stream_ == nullptr || finishing_) return;
    finishing_ = true;
    status_ = why;
    if (queue_.empty()) {
      stream_->Finish(request::ToGrpc(status_));
    } else {
      // Ends the pending write, after which OnWriteDone finishes the stream.
      context_->TryCancel();
    }
  }

  void OnWriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    if (!ok || finishing_) queue_.clear();
    if (finishing_) {
      stream_->Finish(request::ToGrpc(status_));
    } else if (!queue_.empty()) {
      stream_->StartWrite(&queue_.front());
    }
  }

  // The RPC is over; the stream dies.
  void Detach() {
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
  }

 private:
  absl::Mutex mutex_;
  Stream* stream_ ABSL_GUARDED_BY(mutex_);
  grpc::CallbackServerContext* const context_;  // valid while stream_ is not null
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<ToWorker> queue_ ABSL_GUARDED_BY(mutex_);  // the first one is being written
};

// gRPC runs one read at a time, so only reading callbacks touch the members, but for the
// connection.
class Reactor final : public Stream {
 public:
  Reactor(GroupRegistry& registry, grpc::CallbackServerContext* context)
      : registry_(registry), connection_(std::make_shared<Connection>(this, context)) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Lose("the leader closed its stream");
      connection_->Close(absl::OkStatus());
      return;
    }
    if (group_ == nullptr) {
      if (!message_.has_hello()) {
        connection_->Close(absl::InvalidArgumentError("the first message must be a hello"));
        return;
      }
      auto group = registry_.Connect(message_.hello(), connection_);
      if (!group.ok()) {
        APB_LOG(Error, "group refused: ", group.status().message());
        connection_->Close(group.status());
        return;
      }
      group_ = *std::move(group);
    } else {
      registry_.OnMessage(*group_, message_);
    }
    message_.Clear();
    StartRead(&message_);
  }

  void OnWriteDone(bool ok) override { connection_->OnWriteDone(ok); }

  void OnCancel() override { connection_->Close(absl::CancelledError("stream broken")); }

  void OnDone() override {
    connection_->Detach();
    Lose("the connection to the leader broke");
    delete this;
  }

 private:
  void Lose(const std::string& why) {
    if (group_ != nullptr) registry_.Disconnect(group_, why);
    group_ = nullptr;
  }

  GroupRegistry& registry_;
  const std::shared_ptr<Connection> connection_;  // shared with the group
  std::shared_ptr<WorkerGroup> group_;            // shared with the registry and its requests
  FromWorker message_;
};

}  // namespace

grpc::ServerBidiReactor<FromWorker, ToWorker>* ClusterService::Connect(
    grpc::CallbackServerContext* context) {
  return new Reactor(registry_, context);
}

}  // namespace apb::cluster
