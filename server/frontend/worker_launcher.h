// Starts the worker group of this machine (`mpirun -n N apb-worker ...`), starts it again with
// back-off when it ends, and leaves no process behind. One thread of its own.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/observability/metrics.h"

namespace apb::frontend {

struct LauncherOptions {
  std::string mpirun = "mpirun";
  std::string worker_binary;
  int ranks = 1;
  std::vector<std::string> worker_arguments;
  std::string token;  // in the environment of the ranks, so that it is in no process list
  absl::Duration first_backoff = absl::Milliseconds(500);
  absl::Duration max_backoff = absl::Seconds(30);
  // A group that ran this long starts again without the back-off of earlier failures.
  absl::Duration healthy_after = absl::Seconds(30);
  absl::Duration drain_grace = absl::Seconds(1);  // from Stop to SIGTERM
  absl::Duration stop_grace = absl::Seconds(10);  // from there to SIGKILL
};

class WorkerLauncher {
 public:
  // `on_exit` is called on the launcher's thread with the exit status of a group that ended by
  // itself (128 + signal when one killed it); it returns whether to start again. `metrics` must
  // outlive the launcher.
  WorkerLauncher(LauncherOptions options, std::function<bool(int status)> on_exit,
                 observability::Metrics& metrics);
  ~WorkerLauncher();

  // Waits for the end of a group that was told to drain, then SIGTERM, then SIGKILL. No process of
  // the group is left afterwards. Idempotent.
  void Stop();
  // Cuts the grace of a Stop that is under way, or that comes later.
  void Hurry();

 private:
  void Run();
  // The exit status of the group, or -1 when it was stopped.
  int Supervise(pid_t pid);
  void Terminate(pid_t pid, int process_fd);
  // False when Stop was called meanwhile.
  bool Sleep(absl::Duration duration);
  std::vector<std::string> CommandLine() const;

  const LauncherOptions options_;
  const std::function<bool(int)> on_exit_;
  observability::Metrics& metrics_;
  const int stop_event_;  // readable once Stop was called
  std::atomic<bool> hurry_{false};
  std::thread thread_;
};

}  // namespace apb::frontend
