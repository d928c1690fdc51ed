// A backend with operands in CPU memory on top of a device's backend. Each operation uploads the
// operands and downloads those that it writes. The copies on the device keep strides and alignment,
// and have guard bytes around them: a guard byte that changes is a test failure.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace apb::kernels {

class HostOperands : public Backend {
 public:
  explicit HostOperands(std::unique_ptr<Backend> device) : device_(std::move(device)) {}

  std::string_view name() const override { return device_->name(); }
  Place place() const override { return Place::kCpu; }
  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override {
    return device_->Allocate(size_bytes);
  }
  absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) override {
    return device_->AllocateHost(size_bytes);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override { return device_->NewStream(); }

  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream&,
                                                absl::FunctionRef<absl::Status()>) override {
    return absl::UnimplementedError("operands come from the host and go back");
  }

 private:
  void Do(Operation operation, Stream& stream) override;

  std::unique_ptr<Backend> device_;
};

}  // namespace apb::kernels
