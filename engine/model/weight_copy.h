// The way of weights from a checkpoint's files to a backend: several threads read pieces of them,
// converted where types differ, into page-locked memory, from which the device takes them
// while the next pieces are read. What is to be quantized is quantized by these threads. Where the
// backend's memory is the host's, they are read into it directly.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/packed_matrix.h"
#include "engine/model/safetensors.h"
#include "kernels/backend.h"

namespace apb::model {

// A tensor, or columns of one, of type F32, BF16 or F16 on both sides, or quantized on the way:
// then the target has a block type. Both views have the same shape, of rank 1 or 2; rows may be
// strided.
struct WeightCopy {
  std::string name;                       // for messages
  kernels::TensorView source;             // on the host; need not be aligned
  kernels::TensorView target;             // memory of the backend, aligned to its type
  const SafetensorsFile* file = nullptr;  // in whose mapping the source is; null: plain memory
  std::optional<PackedMatrix> packed;     // converted from this instead of from `source`

  const std::byte* source_data() const { return packed ? packed->data() : source.as<std::byte>(); }
  // Of packed weights, those of the target: each share reads more or less of the file.
  int64_t source_bytes() const {
    const kernels::TensorView& view = packed ? target : source;
    return kernels::BytesOf(view.dtype, view.numel());
  }
};

struct LoadProgress {
  int64_t done_bytes = 0;  // of the sources
  int64_t total_bytes = 0;
};

// Returns when all is done. Only the calling thread uses the backend; it calls `progress` (which
// may be null) after each piece. `threads` quantize at a time, if there is something to quantize
// and they are more than those that read. Errors name the tensor: kInvalidArgument for a number
// that is too large for the target's type, kDataLoss for a file that cannot be read, else the
// backend's.
absl::Status CopyWeights(std::vector<WeightCopy> copies, kernels::Backend& backend,
                         const std::function<void(const LoadProgress&)>& progress, int threads = 0);

}  // namespace apb::model
