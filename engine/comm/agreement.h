// What ranks tell each other before they go on alike: single numbers, by a communicator of host
// memory. All ranks call these together; errors are the communicator's.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

absl::StatusOr<int64_t> MinOverRanks(Communicator& control, int64_t value);
absl::StatusOr<double> MaxOverRanks(Communicator& control, double value);
// Whether `mine` is true on every rank.
absl::StatusOr<bool> AllAgree(Communicator& control, bool mine);

// A stream of host memory, on which nothing is ever pending.
class HostStream : public kernels::Stream {
 public:
  absl::Status Synchronize() override { return status_; }
};

}  // namespace apb::comm
