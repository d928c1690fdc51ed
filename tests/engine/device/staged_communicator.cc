#include "tests/engine/device/staged_communicator.h"

#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "tests/engine/comm/communicator_decorator.h"
#include "tests/engine/device/guarded_backend.h"

namespace apb::comm {
namespace {

using kernels::TensorView;

// A view's twin in CPU memory.
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
    return stream.Synchronize();  // before the twin is destroyed
  }

 private:
  kernels::Backend& backend_;
  TensorView device_, view_;
  std::vector<std::byte> bytes_;
};

// A collective of the twins of its views.
class StagedPending : public Pending {
 public:
  StagedPending(kernels::Backend& backend, const Collective& c)
      : send_(backend, c.send), recv_(backend, c.recv) {}
  absl::Status Start(Communicator& inner, Collective c, kernels::Stream& stream) {
    APB_RETURN_IF_ERROR((c.send.present() ? send_ : recv_).Fetch(stream));
    c.send = send_.view();
    c.recv = recv_.view();
    APB_ASSIGN_OR_RETURN(inner_, inner.Start(c, stream));
    return absl::OkStatus();
  }
  absl::Status Wait(kernels::Stream& stream) override {
    APB_RETURN_IF_ERROR(inner_->Wait(stream));
    return recv_.Store(stream);
  }

 private:
  HostTwin send_, recv_;
  std::unique_ptr<Pending> inner_;
};

class StagedCommunicator : public CommunicatorDecorator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> inner, kernels::Backend& backend)
      : CommunicatorDecorator(*inner), owned_(std::move(inner)), backend_(backend) {}
  bool recordable() const override { return true; }

 private:
  // Recorded, the whole collective is host work of the graph, and nothing is left to wait for.
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& c,
                                                   kernels::Stream& stream) override {
    const auto start = [this, &stream](const Collective& collective) {
      auto pending = std::make_unique<StagedPending>(backend_, collective);
      const absl::Status status = pending->Start(inner(), collective, stream);
      return status.ok() ? absl::StatusOr<std::unique_ptr<Pending>>(std::move(pending)) : status;
    };
    const std::vector<int64_t> counts(c.counts.begin(), c.counts.end());
    const auto work = [start, c, counts, &stream]() -> absl::Status {
      Collective again = c;
      again.counts = counts;
      APB_ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending, start(again));
      return pending->Wait(stream);
    };
    if (kernels::RecordHostWork(stream, work)) return std::make_unique<DonePending>();
    return start(c);
  }

  const std::unique_ptr<Communicator> owned_;
  kernels::Backend& backend_;
};

}  // namespace

std::unique_ptr<Communicator> StageThroughHost(std::unique_ptr<Communicator> inner,
                                               kernels::Backend& backend) {
  return std::make_unique<StagedCommunicator>(std::move(inner), backend);
}

}  // namespace apb::comm
