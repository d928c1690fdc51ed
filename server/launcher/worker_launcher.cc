// Supervision of mpirun.
#include "server/launcher/worker_launcher.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "server/launcher/process_tree.h"

namespace apb::launcher {
namespace {

int ExitStatus(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

// A variable of this process's environment; empty if it is not set.
std::string_view Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : value;
}

}  // namespace

WorkerLauncher::WorkerLauncher(LauncherOptions options,
                               std::function<bool(const GroupExit&)> on_exit,
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
  // Ranks reach each other through shared memory and mpirun through loopback, so no port is open to
  // other machines.
  std::vector<std::string> line = {options_.mpirun,
                                   "--allow-run-as-root",
                                   "--oversubscribe",
                                   "--bind-to",
                                   "none",
                                   "--mca",
                                   "pml",
                                   "ob1",
                                   "--mca",
                                   "btl",
                                   "self,vader",
                                   "--mca",
                                   "oob_tcp_if_include",
                                   "lo",
                                   "-x",
                                   absl::StrCat("LD_PRELOAD=", std::string(Variable("LD_PRELOAD"))),
                                   "-n",
                                   absl::StrCat(options_.ranks),
                                   options_.worker_binary};
  line.insert(line.end(), options_.worker_arguments.begin(), options_.worker_arguments.end());
  return line;
}

std::vector<std::string> WorkerLauncher::Environment() const {
  // In a container, ranks may not read each other's memory. Open MPI would warn about it; turn that
  // method off instead.
  std::vector<std::string> environment = {
      "OMPI_MCA_btl_vader_single_copy_mechanism=none", "OMPI_MCA_btl_base_warn_component_unused=0",
      "OMPI_MCA_mpi_yield_when_idle=1", absl::StrCat("APB_GROUP_TOKEN=", options_.token)};
  // NCCL's bootstrap listens too.
  if (Variable("NCCL_SOCKET_IFNAME").empty()) environment.push_back("NCCL_SOCKET_IFNAME=lo");
  if (!options_.preload.empty()) {
    const std::string_view others = Variable("LD_PRELOAD");
    environment.push_back(absl::StrCat("LD_PRELOAD=", options_.preload, others.empty() ? "" : ":",
                                       std::string(others)));
  }
  return environment;
}

void WorkerLauncher::Run() {
  GroupExit exit;
  absl::Duration backoff = options_.first_backoff;
  for (bool first = true;; first = false) {
    if (!first) metrics_.GroupRestarted();
    const int64_t ready_before = options_.ready_groups();
    exit.status = RunGroup(&exit.reason);
    if (exit.status < 0) return;
    const bool failed = options_.ready_groups() == ready_before;
    exit.failed_starts = failed ? exit.failed_starts + 1 : 0;
    exit.next_start = failed ? backoff : absl::ZeroDuration();
    backoff = failed ? std::min(backoff * 2, options_.max_backoff) : options_.first_backoff;
    if (!failed) exit.reason.clear();  // an error that the group logged may be old
    APB_LOG(Error, "worker group ended with status ", exit.status,
            failed
                ? absl::StrCat(" before it was ready, start failed ", exit.failed_starts, " times")
                : "",
            exit.reason.empty() ? "" : ": ", exit.reason, "; next start in ",
            absl::FormatDuration(exit.next_start));
    if (!on_exit_(exit) || !Sleep(exit.next_start)) return;
  }
}

int WorkerLauncher::RunGroup(std::string* reason) {
  GroupOutput output;
  Command command = {.arguments = CommandLine(), .environment = Environment()};
  if (output.write_end() >= 0) command.output = output.write_end();
  const absl::StatusOr<pid_t> pid = StartProcess(command);
  int status = 127;
  if (pid.ok()) {
    APB_LOG(Info, "worker group started pid=", *pid, " command=\"",
            absl::StrJoin(command.arguments, " "), "\"");
    status = Supervise(*pid, output);
  }
  if (!KillDescendants(absl::Now() + absl::Seconds(10))) {
    APB_LOG(Error, "processes of the worker group could not be killed");
  }
  output.PassOnRest();
  *reason = pid.ok() ? output.reason() : std::string(pid.status().message());
  return status;
}

int WorkerLauncher::Supervise(pid_t pid, GroupOutput& output) {
  const int process_fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  pollfd watched[3] = {
      {stop_event_, POLLIN, 0}, {process_fd, POLLIN, 0}, {output.read_end(), POLLIN, 0}};
  while (((watched[0].revents | watched[1].revents) & POLLIN) == 0) {
    if (poll(watched, 3, -1) > 0 && watched[2].revents != 0) output.PassOn();
  }
  const bool stopping = (watched[0].revents & POLLIN) != 0;
  if (stopping) Terminate(pid, process_fd, output);
  int wait_status = 0;
  if (!stopping) waitpid(pid, &wait_status, 0);
  if (process_fd >= 0) close(process_fd);
  return stopping ? -1 : ExitStatus(wait_status);
}

void WorkerLauncher::Terminate(pid_t pid, int process_fd, GroupOutput& output) {
  auto has_ended = [&](absl::Duration grace) {
    const absl::Time deadline = absl::Now() + grace;
    pollfd process{process_fd, POLLIN, 0};
    while (!hurry_ && absl::Now() < deadline) {
      output.PassOn();
      if (poll(&process, 1, 50) > 0) return true;
    }
    return false;
  };
  // A drained group ends by itself; mpirun takes two seconds to react to a signal.
  if (has_ended(options_.drain_grace)) return;
  kill(pid, SIGTERM);
  has_ended(options_.stop_grace);
  // The caller kills the processes that are left.
}

}  // namespace apb::launcher
