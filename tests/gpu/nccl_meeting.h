// Ranks as processes of one machine, each with a GPU. They find each other through files, without
// MPI. They may share a GPU if each has its own NCCL_HOSTID (run.sh).
#pragma once

#include <memory>

#include "engine/comm/communicator.h"
#include "kernels/backend.h"

namespace apb::comm {

// Parses the command line `program RANK SIZE FILE [gtest flags]` and runs the tests. Returns the
// program's exit code.
int RunNcclRank(int argc, char** argv);

int NcclRank();
int NcclRanks();
// This rank's backend. The machine's GPUs are dealt out to the ranks in turn.
kernels::Backend& NcclTestBackend();
// A communicator of all ranks. All ranks call it, in the same order, with a new name for each
// communicator.
absl::StatusOr<std::unique_ptr<Communicator>> Meet(const char* name, absl::Duration deadline);

}  // namespace apb::comm
