// Supervision of mpirun.
#include "server/frontend/worker_launcher.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "server/frontend/process_tree.h"

namespace apb::frontend {
namespace {

int ExitStatus(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

}  // namespace

WorkerLauncher::WorkerLauncher(LauncherOptions options, std::function<bool(int)> on_exit,
                               observability::Metrics& metrics)
    : options_(std::move(options)),
      on_exit_(std::move(on_exit)),
      metrics_(metrics),
      stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this] { Run(); }) {}

WorkerLauncher::~WorkerLauncher() {
  Stop();
  close(stop_event_);
}

void WorkerLauncher::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_event_, 1);
  thread_.join();
}

void WorkerLauncher::Hurry() { hurry_ = true; }

bool WorkerLauncher::Sleep(absl::Duration duration) {
  pollfd stop{stop_event_, POLLIN, 0};
  poll(&stop, 1, static_cast<int>(absl::ToInt64Milliseconds(duration)));
  return (stop.revents & POLLIN) == 0;
}

std::vector<std::string> WorkerLauncher::CommandLine() const {
  std::vector<std::string> line = {options_.mpirun,
                                   "--allow-run-as-root",
                                   "--oversubscribe",
                                   "--bind-to",
                                   "none",
                                   "--mca",
                                   "btl",
                                   "self,vader,tcp",
                                   "-n",
                                   absl::StrCat(options_.ranks),
                                   options_.worker_binary};
  line.insert(line.end(), options_.worker_arguments.begin(), options_.worker_arguments.end());
  return line;
}

void WorkerLauncher::Run() {
  const Command command = {
      .arguments = CommandLine(),
      // Ranks of one machine in a container may not read each other's memory; say so rather than
      // warn.
      .environment = {"OMPI_MCA_btl_vader_single_copy_mechanism=none",
                      "OMPI_MCA_btl_base_warn_component_unused=0", "OMPI_MCA_mpi_yield_when_idle=1",
                      absl::StrCat("APB_GROUP_TOKEN=", options_.token)}};
  absl::Duration backoff = options_.first_backoff;
  for (bool first = true;; first = false) {
    if (!first) metrics_.GroupRestarted();
    const absl::Time begin = absl::Now();
    absl::StatusOr<pid_t> pid = StartProcess(command);
    int status = 127;
    if (pid.ok()) {
      APB_LOG(Info, "worker group started pid=", *pid, " command=\"",
              absl::StrJoin(command.arguments, " "), "\"");
      status = Supervise(*pid);
    } else {
      APB_LOG(Error, "worker group cannot be started: ", pid.status().message());
    }
    if (!KillDescendants(absl::Now() + absl::Seconds(10))) {
      APB_LOG(Error, "processes of the worker group could not be killed");
    }
    if (status < 0) return;
    // Back-off is for groups that fail, not for one that was told to end.
    if (status == 0 || absl::Now() - begin >= options_.healthy_after)
      backoff = options_.first_backoff;
    APB_LOG(Error, "worker group ended with status ", status, "; next start in ",
            absl::FormatDuration(backoff));
    if (!on_exit_(status) || !Sleep(backoff)) return;
    backoff = std::min(backoff * 2, options_.max_backoff);
  }
}

int WorkerLauncher::Supervise(pid_t pid) {
  const int process_fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  pollfd watched[2] = {{stop_event_, POLLIN, 0}, {process_fd, POLLIN, 0}};
  while (poll(watched, 2, -1) < 0) {
  }
  const bool stopping = (watched[0].revents & POLLIN) != 0;
  if (stopping) Terminate(pid, process_fd);
  int wait_status = 0;
  if (!stopping) waitpid(pid, &wait_status, 0);
  if (process_fd >= 0) close(process_fd);
  return stopping ? -1 : ExitStatus(wait_status);
}

void WorkerLauncher::Terminate(pid_t pid, int process_fd) {
  auto has_ended = [&](absl::Duration grace) {
    const absl::Time deadline = absl::Now() + grace;
    pollfd process{process_fd, POLLIN, 0};
    while (!hurry_ && absl::Now() < deadline) {
      if (poll(&process, 1, 50) > 0) return true;
    }
    return false;
  };
  // A group that was drained ends by itself; mpirun takes two seconds over a signal.
  if (has_ended(options_.drain_grace)) return;
  kill(pid, SIGTERM);
  has_ended(options_.stop_grace);
  // What is still there is killed by the caller, with everything below it.
}

}  // namespace apb::frontend
