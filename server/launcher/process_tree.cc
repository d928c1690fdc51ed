// Process handling through /proc.
#include "server/launcher/process_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace apb::launcher {
namespace {

struct ProcessState {
  pid_t parent = 0;
  char state = 'X';
};

// The line is "pid (name) S ppid ...". The name may contain brackets, so search for the last one.
ProcessState ReadState(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  ProcessState result;
  const size_t bracket = line.rfind(')');
  if (bracket == std::string::npos || bracket + 4 > line.size()) return result;
  result.state = line[bracket + 2];
  result.parent = static_cast<pid_t>(std::strtol(line.c_str() + bracket + 4, nullptr, 10));
  return result;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Runs in the child: only calls that are safe after fork in a process with threads.
[[noreturn]] void RunChild(pid_t parent, char* const* arguments, char* const* environment,
                           int output) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);  // the parent died before the request above
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int signal_number : {SIGPIPE, SIGTERM, SIGINT, SIGHUP}) signal(signal_number, SIG_DFL);
  const int null = open("/dev/null", O_RDONLY);
  if (null >= 0) dup2(null, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  close_range(3, ~0u, 0);
  execvpe(arguments[0], arguments, environment);
  const std::array<const char*, 4> words = {arguments[0], ": ", strerrordesc_np(errno), "\n"};
  for (const char* word : words) {
    if (write(STDERR_FILENO, word, std::strlen(word)) < 0) break;
  }
  _exit(127);
}

}  // namespace

void AdoptOrphans() { prctl(PR_SET_CHILD_SUBREAPER, 1); }

absl::StatusOr<pid_t> StartProcess(const Command& command) {
  std::vector<std::string> environment = command.environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view name(*entry, std::strcspn(*entry, "=") + 1);
    bool replaced = false;
    for (const std::string& ours : command.environment) replaced |= ours.starts_with(name);
    if (!replaced) environment.emplace_back(*entry);
  }
  const std::vector<char*> arguments = Pointers(command.arguments);
  const std::vector<char*> variables = Pointers(environment);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid == 0) RunChild(parent, arguments.data(), variables.data(), command.output);
  return pid;
}

std::vector<pid_t> Descendants(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  DIR* directory = opendir("/proc");
  if (directory == nullptr) return {};
  while (const dirent* entry = readdir(directory)) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid)) continue;
    const ProcessState state = ReadState(pid);
    if (state.state != 'Z' && state.state != 'X') children.emplace(state.parent, pid);
  }
  closedir(directory);
  std::vector<pid_t> found;
  std::vector<pid_t> open_ends = {root};
  while (!open_ends.empty()) {
    const pid_t parent = open_ends.back();
    open_ends.pop_back();
    const auto [begin, end] = children.equal_range(parent);
    for (auto it = begin; it != end; ++it) {
      found.push_back(it->second);
      open_ends.push_back(it->second);
    }
  }
  return found;
}

bool KillDescendants(absl::Time deadline) {
  while (true) {
    const std::vector<pid_t> alive = Descendants(getpid());
    for (pid_t pid : alive) kill(pid, SIGKILL);
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    if (alive.empty()) return true;
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
}

}  // namespace apb::launcher
