// Collectives on device memory over a communicator for CPU memory: operands are copied to CPU
// memory and back. So guarded devices can be the ranks of a group, as GPUs can with NCCL.
#pragma once

#include <memory>

#include "engine/comm/communicator.h"

namespace apb::comm {

// The views are in memory of `backend` (guarded_backend.h), which must outlive the communicator.
std::unique_ptr<Communicator> StageThroughHost(std::unique_ptr<Communicator> inner,
                                               kernels::Backend& backend);

}  // namespace apb::comm
