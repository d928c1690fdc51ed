// Internal to engine/comm: MPI tags, MPI errors as statuses, and waiting for requests up to a
// deadline.
#pragma once

#include <mpi.h>

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace apb::comm {

// All tags that this program uses.
enum MpiTag { kSendRecvTag = 0, kPlanTag = 1, kGatherTag = 2 };

// kUnavailable with MPI's text for `code`. `what` names the operation.
absl::Status MpiError(int code, absl::string_view what);

// Tests the requests until all are done: first in a tight loop, then yielding the core, then with
// short sleeps. kUnavailable after `deadline`, when `*aborted` is true (`aborted` may be null), or
// when MPI reports an error.
absl::Status WaitAll(MPI_Request* requests, int count, absl::Duration deadline,
                     const std::atomic<bool>* aborted, const std::string& what);

}  // namespace apb::comm
