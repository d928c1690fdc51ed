// The processes below this one. mpirun gives each rank a process group of its own, so a tree is
// ended by walking it: AdoptOrphans makes ranks whose mpirun has died children of this process
// instead of children of init.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace apb::launcher {

// Call once, before anything is started.
void AdoptOrphans();

struct Command {
  std::vector<std::string> arguments;    // [0] is looked up in PATH
  std::vector<std::string> environment;  // NAME=value, in addition to this process's
  int output = 2;                        // descriptor that standard output and error go to
};

// Starts a process in a process group of its own, with none of our descriptors but that of its
// output. A program that cannot be run says so there and ends with 127. It gets SIGTERM when the
// calling *thread* ends, so the caller must live as long as it should.
absl::StatusOr<pid_t> StartProcess(const Command& command);

// All processes below `root`, zombies excluded.
std::vector<pid_t> Descendants(pid_t root);

// Kills everything below this process and collects the dead; true when nothing is left at the
// deadline.
bool KillDescendants(absl::Time deadline);

}  // namespace apb::launcher
