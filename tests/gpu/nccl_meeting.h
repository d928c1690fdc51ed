// Ranks as processes of one machine, each with a GPU, that meet by files: no MPI. They may share a
// GPU if each has its own NCCL_HOSTID (run.sh).
#pragma once

#include <memory>

#include "engine/comm/communicator.h"
#include "kernels/backend.h"

namespace apb::comm {

// Reads `program RANK SIZE FILE`, removes what gtest takes and runs the tests; what main returns.
int RunNcclRank(int argc, char** argv);

int NcclRank();
int NcclRanks();
// On a GPU of this machine, the ranks taking turns.
kernels::Backend& NcclTestBackend();
// A communicator of all ranks. Each is asked for by a name of its own, by all ranks in one order.
absl::StatusOr<std::unique_ptr<Communicator>> Meet(const char* name, absl::Duration deadline);

}  // namespace apb::comm
