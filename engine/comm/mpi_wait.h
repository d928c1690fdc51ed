// Internal to engine/comm: tags, errors, completion of MPI requests with a deadline.
#pragma once

#include <mpi.h>

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace apb::comm {

// Every tag of this program.
enum MpiTag { kSendRecvTag = 0, kPlanTag = 1, kGatherTag = 2 };

absl::Status MpiError(int code, absl::string_view what);

// Tests the requests until all are done: first in a tight loop, then yielding, then with short
// sleeps. kUnavailable after `deadline`, when `aborted` is set, or when MPI reports an error.
absl::Status WaitAll(MPI_Request* requests, int count, absl::Duration deadline,
                     const std::atomic<bool>* aborted, const std::string& what);

}  // namespace apb::comm
