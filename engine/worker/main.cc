// apb-worker: one rank of a worker group. Exit codes: 0 ended as asked, 1 failed while running, 2
// wrong options, 3 the model cannot be loaded. Any failure ends the whole group (MPI_Abort);
// apb-server starts it again.
#include <sys/prctl.h>

#include <atomic>
#include <csignal>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/worker/follower.h"
#include "engine/worker/leader.h"
#include "engine/worker/options.h"
#include "engine/worker/setup.h"

namespace {
std::atomic<bool> stop{false};
void OnSignal(int) { stop.store(true); }
}  // namespace

int main(int argc, char** argv) {
  using apb::comm::MpiRuntime;
  apb::worker::WorkerOptions options;
  int exit_code = 0;
  if (!apb::worker::ParseOptions(argc, argv, &options, &exit_code)) return exit_code;
  apb::base::LogLevel level = apb::base::LogLevel::kInfo;
  if (!apb::base::ParseLogLevel(options.log_level, &level)) {
    std::fprintf(stderr, "--log-level %s: must be debug, info, warning or error\n",
                 options.log_level.c_str());
    return 2;
  }
  apb::base::SetLogLevel(level);
  apb::base::SetLogJson(options.log_json);
  // The kernel ends this process when its launcher ends.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto mpi = MpiRuntime::Start(&argc, &argv);
  if (!mpi.ok()) {
    APB_LOG(Error, mpi.status().ToString());
    return 1;
  }
  apb::base::SetLogContext(absl::StrCat("rank=", (*mpi)->rank()));
  // Set after MPI has installed its own handlers. Followers ignore signals: the leader tells them
  // to stop.
  std::signal(SIGTERM, (*mpi)->rank() == 0 ? OnSignal : SIG_IGN);
  std::signal(SIGINT, (*mpi)->rank() == 0 ? OnSignal : SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<apb::worker::Engine> engine = apb::worker::SetUp(options, **mpi);
  if (!engine.ok()) {
    APB_LOG(Error, "cannot start: ", engine.status().ToString());
    MpiRuntime::AbortGroup(3);
  }
  const absl::Status status = (*mpi)->rank() == 0
                                  ? apb::worker::RunLeader(options, **mpi, *engine, stop)
                                  : apb::worker::RunFollower(options, **mpi, *engine);
  if (!status.ok()) {
    APB_LOG(Error, "the group ends: ", status.ToString());
    MpiRuntime::AbortGroup(1);
  }
  return 0;
}
