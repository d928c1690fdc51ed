#include "tests/engine/device/staged_communicator.h"

#include <functional>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "tests/engine/device/guarded_backend.h"

namespace apb::comm {
namespace {

using kernels::TensorView;

// A view's twin in host memory.
class HostTwin {
 public:
  HostTwin(kernels::Backend& backend, const TensorView& device)
      : backend_(backend),
        device_(device),
        bytes_(static_cast<size_t>(device.numel()) * kernels::SizeOf(device.dtype)) {
    view_ = device;
    view_.data = bytes_.data();
    int64_t stride = 1;
    for (int d = view_.rank - 1; d >= 0; --d) {
      view_.stride[d] = stride;
      stride *= view_.shape[d];
    }
  }
  const TensorView& view() const { return view_; }
  absl::Status Fetch(kernels::Stream& stream) {
    backend_.Copy(device_, view_, stream);
    return stream.Synchronize();
  }
  absl::Status Store(kernels::Stream& stream) {
    backend_.Copy(view_, device_, stream);
    return stream.Synchronize();  // the twin dies
  }

 private:
  kernels::Backend& backend_;
  TensorView device_, view_;
  std::vector<std::byte> bytes_;
};

struct Staged {
  HostTwin send, recv;
  std::unique_ptr<Pending> inner;
};

class StagedPending : public Pending {
 public:
  explicit StagedPending(std::unique_ptr<Staged> staged) : staged_(std::move(staged)) {}
  absl::Status Wait(kernels::Stream& stream) override {
    APB_RETURN_IF_ERROR(staged_->inner->Wait(stream));
    return staged_->recv.Store(stream);
  }

 private:
  std::unique_ptr<Staged> staged_;
};

class StagedCommunicator : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> inner, kernels::Backend& backend)
      : inner_(std::move(inner)), backend_(backend) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool recordable() const override { return true; }

  absl::Status AllGather(const TensorView& send, const TensorView& recv,
                         kernels::Stream& stream) override {
    return Run(send, recv, stream,
               [=, this, &stream](const TensorView& from, const TensorView& to) {
                 return inner_->AllGather(from, to, stream);
               });
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const TensorView& send,
                                                          const TensorView& recv,
                                                          kernels::Stream& stream) override {
    APB_ASSIGN_OR_RETURN(auto staged, Stage(send, recv, stream));
    APB_ASSIGN_OR_RETURN(staged->inner,
                         inner_->StartAllGather(staged->send.view(), staged->recv.view(), stream));
    return std::make_unique<StagedPending>(std::move(staged));
  }
  absl::Status AllGatherV(const TensorView& send, const TensorView& recv,
                          std::span<const int64_t> counts, kernels::Stream& stream) override {
    const std::vector<int64_t> parts(counts.begin(), counts.end());
    return Run(send, recv, stream,
               [=, this, &stream](const TensorView& from, const TensorView& to) {
                 return inner_->AllGatherV(from, to, parts, stream);
               });
  }
  absl::Status AllReduce(const TensorView& data, ReduceOp op, kernels::Stream& stream) override {
    return RecordOrDo(stream, [=, this, &stream]() -> absl::Status {
      HostTwin twin(backend_, data);
      APB_RETURN_IF_ERROR(twin.Fetch(stream));
      APB_RETURN_IF_ERROR(inner_->AllReduce(twin.view(), op, stream));
      return twin.Store(stream);
    });
  }
  absl::Status AllToAll(const TensorView& send, const TensorView& recv,
                        kernels::Stream& stream) override {
    return Run(send, recv, stream,
               [=, this, &stream](const TensorView& from, const TensorView& to) {
                 return inner_->AllToAll(from, to, stream);
               });
  }
  absl::Status SendRecv(const TensorView& send, int target, const TensorView& recv, int source,
                        kernels::Stream& stream) override {
    return Run(send, recv, stream,
               [=, this, &stream](const TensorView& from, const TensorView& to) {
                 return inner_->SendRecv(from, target, to, source, stream);
               });
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const TensorView& send, int target,
                                                         const TensorView& recv, int source,
                                                         kernels::Stream& stream) override {
    APB_ASSIGN_OR_RETURN(auto staged, Stage(send, recv, stream));
    APB_ASSIGN_OR_RETURN(staged->inner, inner_->StartSendRecv(staged->send.view(), target,
                                                              staged->recv.view(), source, stream));
    return std::make_unique<StagedPending>(std::move(staged));
  }
  absl::Status Broadcast(const TensorView& data, int root, kernels::Stream& stream) override {
    return RecordOrDo(stream, [=, this, &stream]() -> absl::Status {
      HostTwin twin(backend_, data);
      if (rank() == root) APB_RETURN_IF_ERROR(twin.Fetch(stream));
      APB_RETURN_IF_ERROR(inner_->Broadcast(twin.view(), root, stream));
      return twin.Store(stream);
    });
  }
  absl::Status Barrier() override { return inner_->Barrier(); }
  void Abort(std::string reason) override { inner_->Abort(std::move(reason)); }
  CommunicatorStats stats() const override { return inner_->stats(); }

 private:
  absl::StatusOr<std::unique_ptr<Staged>> Stage(const TensorView& send, const TensorView& recv,
                                                kernels::Stream& stream) {
    std::unique_ptr<Staged> staged(
        new Staged{HostTwin(backend_, send), HostTwin(backend_, recv), nullptr});
    APB_RETURN_IF_ERROR(staged->send.Fetch(stream));
    return staged;
  }
  template <typename Operation>
  absl::Status Run(const TensorView& send, const TensorView& recv, kernels::Stream& stream,
                   const Operation& operation) {
    return RecordOrDo(stream, [=, this, &stream]() -> absl::Status {
      APB_ASSIGN_OR_RETURN(const auto staged, Stage(send, recv, stream));
      APB_RETURN_IF_ERROR(operation(staged->send.view(), staged->recv.view()));
      return staged->recv.Store(stream);
    });
  }
  static absl::Status RecordOrDo(kernels::Stream& stream, std::function<absl::Status()> work) {
    return kernels::RecordHostWork(stream, work) ? absl::OkStatus() : work();
  }

  std::unique_ptr<Communicator> inner_;
  kernels::Backend& backend_;
};

}  // namespace

std::unique_ptr<Communicator> StageThroughHost(std::unique_ptr<Communicator> inner,
                                               kernels::Backend& backend) {
  return std::make_unique<StagedCommunicator>(std::move(inner), backend);
}

}  // namespace apb::comm
