// Starts the worker group of this machine (`mpirun -n N apb-worker ...`), restarts it when it ends,
// and leaves no process behind. A group that was ready is restarted at once; after a failed start
// the next one waits, twice as long each time. The launcher has a thread of its own.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/launcher/group_output.h"
#include "server/observability/metrics.h"

namespace apb::launcher {

struct LauncherOptions {
  std::string mpirun = "mpirun";
  std::string preload;  // the library of loopback_bind.cc, for mpirun; empty: none
  std::string worker_binary;
  int ranks = 1;
  // Returns how many groups of this launcher have become ready so far. Called on the launcher's
  // thread.
  std::function<int64_t()> ready_groups;
  std::vector<std::string> worker_arguments;
  std::string token;  // in the ranks' environment, so that no process list shows it
  // The first wait after a failed start, and the longest one.
  absl::Duration first_backoff = absl::Milliseconds(500);
  absl::Duration max_backoff = absl::Seconds(30);
  absl::Duration drain_grace = absl::Seconds(1);  // from Stop to SIGTERM
  absl::Duration stop_grace = absl::Seconds(10);  // from SIGTERM to SIGKILL
};

// A group that ended without Stop.
struct GroupExit {
  int status = 0;         // exit status, or 128 + signal number
  int failed_starts = 0;  // failed starts in a row, this one included; 0: the group was ready
  // Time until the next start.
  absl::Duration next_start;
  std::string reason;  // why the start failed, as the group printed it; may be empty
};

class WorkerLauncher {
 public:
  // `on_exit` is called on the launcher's thread and returns whether to start the group again.
  // `metrics` must outlive the launcher.
  WorkerLauncher(LauncherOptions options, std::function<bool(const GroupExit&)> on_exit,
                 observability::Metrics& metrics);
  ~WorkerLauncher();

  // Waits for a drained group to end, then sends SIGTERM, then SIGKILL. Afterwards no process of
  // the group is left. Idempotent.
  void Stop();
  // Skips the waiting of a running or later Stop.
  void Hurry();

 private:
  void Run();
  // Runs one group from start to end. Returns its exit status, or -1 when it was stopped.
  int RunGroup(std::string* reason);
  int Supervise(pid_t pid, GroupOutput& output);
  void Terminate(pid_t pid, int process_fd, GroupOutput& output);
  // False if Stop was called meanwhile.
  bool Sleep(absl::Duration duration);
  std::vector<std::string> CommandLine() const;
  std::vector<std::string> Environment() const;

  const LauncherOptions options_;
  const std::function<bool(const GroupExit&)> on_exit_;
  observability::Metrics& metrics_;
  const int stop_event_;  // readable once Stop was called
  std::atomic<bool> hurry_{false};
  std::thread thread_;
};

}  // namespace apb::launcher
