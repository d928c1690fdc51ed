#include "engine/core/tensor.h"

#include "engine/base/status_macros.h"

namespace apb::core {
namespace {
size_t BytesOf(kernels::DType dtype, std::initializer_list<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return static_cast<size_t>(kernels::BytesOf(dtype, count));
}
}  // namespace

absl::StatusOr<Tensor> Tensor::Create(kernels::Backend& backend, kernels::DType dtype,
                                      std::initializer_list<int64_t> shape) {
  Tensor tensor;
  APB_ASSIGN_OR_RETURN(tensor.buffer_, backend.Allocate(BytesOf(dtype, shape)));
  tensor.view_ = kernels::TensorView::Contiguous(tensor.buffer_.data(), dtype, shape);
  return tensor;
}

absl::StatusOr<Tensor> Tensor::CopyOf(kernels::Backend& backend,
                                      const kernels::TensorView& source) {
  Tensor tensor;
  APB_ASSIGN_OR_RETURN(tensor.buffer_,
                       backend.Allocate(kernels::BytesOf(source.dtype, source.numel())));
  tensor.view_ = source;
  tensor.view_.data = tensor.buffer_.data();
  int64_t stride = 1;
  for (int d = source.rank - 1; d >= 0; stride *= source.shape[d--])
    tensor.view_.stride[d] = stride;
  APB_ASSIGN_OR_RETURN(auto stream, backend.NewStream());
  backend.Copy(source, tensor.view_, *stream);
  APB_RETURN_IF_ERROR(stream->Synchronize());
  return tensor;
}

absl::StatusOr<kernels::TensorView> Workspace::Get(kernels::DType dtype,
                                                   std::initializer_list<int64_t> shape) {
  const size_t bytes = BytesOf(dtype, shape);
  if (bytes > buffer_.size_bytes() || buffer_.data() == nullptr) {
    GiveBack();
    APB_ASSIGN_OR_RETURN(buffer_, backend_->Allocate(bytes));
  }
  return kernels::TensorView::Contiguous(buffer_.data(), dtype, shape);
}

void Workspace::Trim(size_t bytes) {
  if (buffer_.size_bytes() > bytes) GiveBack();
}

void Workspace::GiveBack() {
  if (buffer_.data() != nullptr) ++moves_;
  buffer_ = kernels::Buffer();
}

}  // namespace apb::core
