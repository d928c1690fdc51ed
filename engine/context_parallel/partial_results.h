// Attention results over parts of the keys, laid out so that one part is one message: `count` times
// [out [T, n_q, d] ; lse [T, n_q]], f32. Views only: a workspace owns the memory.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/base/status_macros.h"
#include "engine/core/tensor.h"
#include "kernels/tensor_view.h"

namespace apb::context_parallel {

class PartialResults {
 public:
  // Takes the workspace's memory: earlier results in it are lost.
  static absl::StatusOr<PartialResults> In(core::Workspace& memory, int64_t count, int64_t rows,
                                           int64_t heads, int64_t head_dim) {
    APB_ASSIGN_OR_RETURN(const kernels::TensorView view,
                         memory.Get(kernels::DType::kF32, {count * rows * heads * (head_dim + 1)}));
    return At(view, count, rows, heads, head_dim);
  }
  // In f32 memory of exactly count * rows * heads * (head_dim + 1) elements.
  static PartialResults At(const kernels::TensorView& memory, int64_t count, int64_t rows,
                           int64_t heads, int64_t head_dim) {
    PartialResults results;
    results.rows_ = rows;
    results.heads_ = heads;
    results.head_dim_ = head_dim;
    results.all_ = kernels::TensorView::Contiguous(memory.data, kernels::DType::kF32,
                                                   {count, rows * heads * (head_dim + 1)});
    return results;
  }

  // Part `i` as one message, [elements of a part].
  kernels::TensorView Message(int64_t i) const {
    return kernels::TensorView::Contiguous(Begin(i), kernels::DType::kF32, {all_.shape[1]});
  }
  kernels::TensorView Out(int64_t i) const {
    return kernels::TensorView::Contiguous(Begin(i), kernels::DType::kF32,
                                           {rows_, heads_, head_dim_});
  }
  kernels::TensorView Lse(int64_t i) const {
    return kernels::TensorView::Contiguous(Begin(i) + rows_ * heads_ * head_dim_,
                                           kernels::DType::kF32, {rows_, heads_});
  }
  // All parts, as [count, elements of a part].
  const kernels::TensorView& all() const { return all_; }
  // Operands of Backend::MergePartials: outs [count, T, n_q, d] and lses [count, T, n_q].
  kernels::TensorView Outs() const {
    kernels::TensorView view = kernels::TensorView::Contiguous(
        all_.data, kernels::DType::kF32, {all_.shape[0], rows_, heads_, head_dim_});
    view.stride[0] = all_.shape[1];
    return view;
  }
  kernels::TensorView Lses() const {
    kernels::TensorView view =
        kernels::TensorView::Contiguous(Begin(0) + rows_ * heads_ * head_dim_, kernels::DType::kF32,
                                        {all_.shape[0], rows_, heads_});
    view.stride[0] = all_.shape[1];
    return view;
  }

 private:
  float* Begin(int64_t i) const { return all_.as<float>() + i * all_.shape[1]; }

  kernels::TensorView all_;
  int64_t rows_ = 0, heads_ = 0, head_dim_ = 0;
};

}  // namespace apb::context_parallel
