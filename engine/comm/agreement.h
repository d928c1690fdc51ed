// Agreement of the ranks on single numbers. `control` is a communicator over CPU memory. All its
// ranks call these functions together; errors are the communicator's.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

absl::StatusOr<int64_t> MinOverRanks(Communicator& control, int64_t value);
absl::StatusOr<double> MaxOverRanks(Communicator& control, double value);
// Whether `mine` is true on every rank.
absl::StatusOr<bool> AllAgree(Communicator& control, bool mine);

// A stream for CPU memory. No work is ever pending on it.
class HostStream : public kernels::Stream {
 public:
  absl::Status Synchronize() override { return status_; }
};

}  // namespace apb::comm
