// Tensors that own memory of a Backend, and reusable scratch memory.
#pragma once

#include <initializer_list>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace apb::core {

// A contiguous tensor that owns its memory. The backend must outlive it.
class Tensor {
 public:
  Tensor() = default;
  // A tensor with undefined contents. Errors: those of Backend::Allocate.
  static absl::StatusOr<Tensor> Create(kernels::Backend& backend, kernels::DType dtype,
                                       std::initializer_list<int64_t> shape);
  // A contiguous copy of `source`, which may be in any memory. The copy is complete on return.
  static absl::StatusOr<Tensor> CopyOf(kernels::Backend& backend,
                                       const kernels::TensorView& source);
  const kernels::TensorView& view() const { return view_; }

 private:
  kernels::Buffer buffer_;
  kernels::TensorView view_;
};

// Scratch memory that grows to the largest view asked for; each view reuses the memory of the one
// before, so there is one user at a time.
class Workspace {
 public:
  explicit Workspace(kernels::Backend& backend) : backend_(&backend) {}
  // A contiguous view with undefined contents. The previous view becomes invalid. Errors: those of
  // Backend::Allocate.
  absl::StatusOr<kernels::TensorView> Get(kernels::DType dtype,
                                          std::initializer_list<int64_t> shape);
  // Frees the memory if it is larger than `bytes`.
  void Trim(size_t bytes);
  // How often memory was freed that views had pointed into. While this number stays the same, views
  // of equal or smaller size begin at the same address, so recorded work (Backend::Record) stays
  // valid.
  int64_t moves() const { return moves_; }

 private:
  void GiveBack();
  kernels::Backend* backend_;
  kernels::Buffer buffer_;
  int64_t moves_ = 0;
};

}  // namespace apb::core
