// Collectives of device memory over a communicator of host memory: every operand is copied to the
// host before and back behind. So the guarded device has several ranks, as GPUs have by NCCL.
#pragma once

#include <memory>

#include "engine/comm/communicator.h"

namespace apb::comm {

// `backend` (guarded_backend.h; whose memory the views are in) must outlive the communicator.
std::unique_ptr<Communicator> StageThroughHost(std::unique_ptr<Communicator> inner,
                                               kernels::Backend& backend);

}  // namespace apb::comm
