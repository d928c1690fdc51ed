// Communicator between threads of one process, for tests and one-process runs. CPU memory only.
#pragma once

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "engine/comm/communicator.h"

namespace apb::comm {

// One communicator for each of `size` ranks, by rank. Each must be used by a thread of its own.
// Ranks whose calls do not match (another operation, other sizes) break the group with
// kUnavailable. So does a rank that stays away longer than `deadline`.
std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size, absl::Duration deadline);

}  // namespace apb::comm
