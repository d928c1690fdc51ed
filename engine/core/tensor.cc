#include "engine/core/tensor.h"

#include "engine/base/status_macros.h"

namespace apb::core {
namespace {
size_t BytesOf(kernels::DType dtype, std::initializer_list<int64_t> shape) {
  size_t bytes = SizeOf(dtype);
  for (int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}
}  // namespace

absl::StatusOr<Tensor> Tensor::Create(kernels::Backend& backend, kernels::DType dtype,
                                      std::initializer_list<int64_t> shape) {
  Tensor tensor;
  APB_ASSIGN_OR_RETURN(tensor.buffer_, backend.Allocate(BytesOf(dtype, shape)));
  tensor.view_ = kernels::TensorView::Contiguous(tensor.buffer_.data(), dtype, shape);
  return tensor;
}

absl::StatusOr<kernels::TensorView> Workspace::Get(kernels::DType dtype,
                                                   std::initializer_list<int64_t> shape) {
  const size_t bytes = BytesOf(dtype, shape);
  if (bytes > buffer_.size_bytes() || buffer_.data() == nullptr) {
    buffer_ = kernels::Buffer();
    APB_ASSIGN_OR_RETURN(buffer_, backend_->Allocate(bytes));
  }
  return kernels::TensorView::Contiguous(buffer_.data(), dtype, shape);
}

void Workspace::Trim(size_t bytes) {
  if (buffer_.size_bytes() > bytes) buffer_ = kernels::Buffer();
}

}  // namespace apb::core
