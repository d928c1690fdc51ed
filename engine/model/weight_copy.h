// Copies weights from a checkpoint's files to a backend. Several threads read pieces of them into
// staging buffers (page-locked memory), and convert or quantize them on the way. The device copies
// one piece while the threads read the next ones. If the backend computes in CPU memory, the
// threads read straight into it.
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

// One tensor, or some of its columns. The source is F32, BF16 or F16; so is the target, unless it
// has a block type: then the weights are quantized. Both views have the same shape, of rank 1 or 2;
// rows may be strided.
struct WeightCopy {
  std::string name;                       // for messages
  kernels::TensorView source;             // in CPU memory; may not be aligned
  kernels::TensorView target;             // in the backend's memory, aligned to its type
  const SafetensorsFile* file = nullptr;  // its mapping holds the source; null: plain memory
  std::optional<PackedMatrix> packed;     // if set, the source instead of `source`

  const std::byte* source_data() const { return packed ? packed->data() : source.as<std::byte>(); }
  // For packed weights, the bytes of the target, because a share's part of the file has no size of
  // its own.
  int64_t source_bytes() const {
    const kernels::TensorView& view = packed ? target : source;
    return kernels::BytesOf(view.dtype, view.numel());
  }
};

struct LoadProgress {
  int64_t done_bytes = 0;  // of the sources
  int64_t total_bytes = 0;
};

// Returns when all copies are done. Only the calling thread uses the backend; it calls `progress`
// (may be null) after each piece. If there is something to quantize in CPU memory, `threads`
// threads work instead of the usual readers, if they are more. Errors name the tensor:
// kInvalidArgument for a number that is too large for the target's type, kDataLoss for a file that
// cannot be read. The backend's errors are returned as they are.
absl::Status CopyWeights(std::vector<WeightCopy> copies, kernels::Backend& backend,
                         const std::function<void(const LoadProgress&)>& progress, int threads = 0);

}  // namespace apb::model
