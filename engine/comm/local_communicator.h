// Communicator between threads of one process: for tests and one-process runs. Host memory.
#pragma once

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

// One communicator for each of `size` ranks; give each to its own thread. Calls that do not match
// between ranks (another operation, other sizes) break the group with kUnavailable, as does a rank
// that stays away longer than `deadline`.
std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size, absl::Duration deadline);

}  // namespace apb::comm
