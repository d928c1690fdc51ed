// Ranks that run the same rows and computed different columns of them give each other the rest.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/core/tensor.h"
#include "engine/model/layer_weights.h"

namespace apb::model {

class ColumnGather {
 public:
  // columns[r]: the columns of the whole that rank r has; in its part they lie side by side.
  // References outlive the object.
  ColumnGather(kernels::Backend& backend, comm::Communicator& communicator,
               std::vector<std::vector<Range>> columns);

  // Memory for this rank's part: [rows, its columns].
  absl::StatusOr<kernels::TensorView> Mine(kernels::DType dtype, int64_t rows);
  // Fills whole [rows, all columns] from the parts of all ranks, after Mine of as many rows is
  // filled. One collective.
  absl::Status Gather(const kernels::TensorView& whole, kernels::Stream& stream);

  // As of a core::Workspace.
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
