// The processes below this one. mpirun gives each rank a process group of its own, so ending them
// means walking the process tree. After AdoptOrphans, ranks whose mpirun has died become children
// of this process instead of init's.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace apb::launcher {

// Call it once, before any process is started.
void AdoptOrphans();

struct Command {
  std::vector<std::string> arguments;    // [0] is looked up in PATH
  std::vector<std::string> environment;  // NAME=value; added to this process's, or replacing them
  int output = 2;                        // descriptor for standard output and standard error
};

// Starts a process in a process group of its own, which inherits no descriptor but `output`. A
// program that cannot be run prints the reason there and exits with 127. The process gets SIGTERM
// when the calling *thread* ends, so that thread must live as long as the process should.
absl::StatusOr<pid_t> StartProcess(const Command& command);

// All processes below `root`, without zombies.
std::vector<pid_t> Descendants(pid_t root);

// Kills every process below this one and reaps them; true if none is left by the deadline.
bool KillDescendants(absl::Time deadline);

}  // namespace apb::launcher
