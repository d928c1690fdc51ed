// Collects the columns of a matrix from ranks that computed different columns of the same rows.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/core/tensor.h"
#include "engine/model/layer_weights.h"

namespace apb::model {

class ColumnGather {
 public:
  // columns[r] are the columns of the whole matrix that rank r computes; its part holds them side
  // by side. The references must outlive the object.
  ColumnGather(kernels::Backend& backend, comm::Communicator& communicator,
               std::vector<std::vector<Range>> columns);

  // Memory for this rank's part, [rows, columns of the rank]. The caller fills it.
  absl::StatusOr<kernels::TensorView> Mine(kernels::DType dtype, int64_t rows);
  // Fills `whole` [rows, all columns] from the parts of all ranks, by one collective. The caller
  // has filled Mine, of the same number of rows, before.
  absl::Status Gather(const kernels::TensorView& whole, kernels::Stream& stream);

  // As core::Workspace::moves, for both workspaces together.
  int64_t moves() const { return send_.moves() + received_.moves(); }

 private:
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const std::vector<std::vector<Range>> columns_;
  std::vector<int64_t> widths_;  // by rank
  core::Workspace send_, received_;
  kernels::TensorView mine_;
};

}  // namespace apb::model
