// A communicator over another one, for tests: forwards everything, so that a decorator overrides
// only the hooks that it is about, mostly DoStart, which sees every collective.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "engine/comm/communicator.h"

namespace apb::comm {

class CommunicatorDecorator : public Communicator {
 public:
  // `inner` must outlive the decorator.
  explicit CommunicatorDecorator(Communicator& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  absl::Status Barrier() override { return inner_.Barrier(); }
  bool recordable() const override { return false; }
  void Abort(std::string reason) override { inner_.Abort(std::move(reason)); }
  CommunicatorStats stats() const override { return inner_.stats(); }

 protected:
  Communicator& inner() { return inner_; }

 private:
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& collective,
                                                   kernels::Stream& stream) override {
    return inner_.Start(collective, stream);
  }

  Communicator& inner_;
};

// A collective that is done when it has been started.
class DonePending : public Pending {
 public:
  absl::Status Wait(kernels::Stream&) override { return absl::OkStatus(); }
};

}  // namespace apb::comm
