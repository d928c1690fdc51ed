// Starts the worker group of this machine (`mpirun -n N apb-worker ...`), starts it again when it
// ends, and leaves no process behind. A group that was ready starts again at once; after a start
// that failed the next one waits, twice as long each time. One thread of its own.
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
  std::string preload;  // loopback_bind.cc as a library, for mpirun; empty: none
  std::string worker_binary;
  int ranks = 1;
  // How many groups of this launcher have become ready so far. Called on its thread.
  std::function<int64_t()> ready_groups;
  std::vector<std::string> worker_arguments;
  std::string token;  // in the environment of the ranks, so that it is in no process list
  absl::Duration first_backoff = absl::Milliseconds(500);
  absl::Duration max_backoff = absl::Seconds(30);
  absl::Duration drain_grace = absl::Seconds(1);  // from Stop to SIGTERM
  absl::Duration stop_grace = absl::Seconds(10);  // from there to SIGKILL
};

// A group that ended by itself.
struct GroupExit {
  int status = 0;         // 128 + signal when one killed it
  int failed_starts = 0;  // in a row, this one among them; 0: the group was ready
  absl::Duration next_start;
  std::string reason;  // why the start failed, in the group's words; may be empty
};

class WorkerLauncher {
 public:
  // `on_exit` is called on the launcher's thread; it returns whether to start again. `metrics` must
  // outlive the launcher.
  WorkerLauncher(LauncherOptions options, std::function<bool(const GroupExit&)> on_exit,
                 observability::Metrics& metrics);
  ~WorkerLauncher();

  // Waits for the end of a group that was told to drain, then SIGTERM, then SIGKILL. No process of
  // the group is left afterwards. Idempotent.
  void Stop();
  // Cuts the grace of a Stop that is under way, or that comes later.
  void Hurry();

 private:
  void Run();
  // One group from its start to its end: its exit status, or -1 when it was stopped.
  int RunGroup(std::string* reason);
  int Supervise(pid_t pid, GroupOutput& output);
  void Terminate(pid_t pid, int process_fd, GroupOutput& output);
  // False when Stop was called meanwhile.
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
