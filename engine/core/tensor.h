// Owning tensors over Backend memory.
#pragma once

#include <initializer_list>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::core {

// A contiguous tensor that owns its memory. The backend must outlive it.
class Tensor {
 public:
  Tensor() = default;
  static absl::StatusOr<Tensor> Create(kernels::Backend& backend, kernels::DType dtype,
                                       std::initializer_list<int64_t> shape);
  // A contiguous copy of `source`, which may be anywhere; complete when this returns.
  static absl::StatusOr<Tensor> CopyOf(kernels::Backend& backend,
                                       const kernels::TensorView& source);
  const kernels::TensorView& view() const { return view_; }

 private:
  kernels::Buffer buffer_;
  kernels::TensorView view_;
};

// Memory that grows to the largest view asked for and is reused by the next one (one user at a
// time).
class Workspace {
 public:
  explicit Workspace(kernels::Backend& backend) : backend_(&backend) {}
  // Contents are undefined; the view before becomes invalid.
  absl::StatusOr<kernels::TensorView> Get(kernels::DType dtype,
                                          std::initializer_list<int64_t> shape);
  // Gives the memory back if it is larger than `bytes`.
  void Trim(size_t bytes);
  // How often memory was given back that views had been made of. While the number stays, views of
  // equal or smaller size begin where they began: recorded work (Backend::Record) can go on.
  int64_t moves() const { return moves_; }

 private:
  void GiveBack();
  kernels::Backend* backend_;
  kernels::Buffer buffer_;
  int64_t moves_ = 0;
};

}  // namespace apb::core
