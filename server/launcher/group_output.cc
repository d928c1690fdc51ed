// Reads the lines of the group's pipe.
#include "server/launcher/group_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

namespace apb::launcher {
namespace {

constexpr size_t kLongestReason = 500;
constexpr size_t kLongestLine = 1 << 16;  // a longer line is passed on in pieces

// engine/base/log.h writes lines like `E 2026-01-01T12:00:00.123456Z main.cc:50 rank=0 message`, or
// `{"ts":"…","level":"E","at":"…","context":"rank=0","msg":"message"}`.
bool IsTextLog(std::string_view line) {
  return line.size() > 28 && line.find_first_of("DIWE") == 0 && line.substr(1, 2) == " 2" &&
         line[12] == 'T';
}
bool IsJsonLog(std::string_view line) { return line.starts_with(R"({"ts":")"); }

bool IsError(std::string_view line) {
  if (IsTextLog(line)) return line[0] == 'E';
  return IsJsonLog(line) && line.find(R"("level":"E")") != std::string_view::npos;
}

// The part after the level, the time and the place in the source.
std::string_view MessageOf(std::string_view line) {
  if (const size_t json = line.find(R"("msg":")"); IsJsonLog(line) && json != line.npos) {
    line.remove_prefix(json + 7);
    return line.substr(0, line.rfind('"'));
  }
  for (int word = 0; word < 3; ++word) {
    const size_t space = line.find(' ');
    if (space == std::string_view::npos) break;
    line.remove_prefix(space + 1);
  }
  return line;
}

}  // namespace

GroupOutput::GroupOutput() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  read_end_ = ends[0];
  write_end_ = ends[1];
  fcntl(read_end_, F_SETFL, O_NONBLOCK);
}

GroupOutput::~GroupOutput() {
  if (read_end_ >= 0) close(read_end_);
  if (write_end_ >= 0) close(write_end_);
}

void GroupOutput::PassOn() {
  char bytes[4096];
  for (ssize_t count = 0; (count = read(read_end_, bytes, sizeof bytes)) > 0;) {
    Take({bytes, static_cast<size_t>(count)});
  }
}

void GroupOutput::PassOnRest() {
  PassOn();
  if (!partial_.empty()) Take("\n");
}

void GroupOutput::Take(std::string_view bytes) {
  partial_.append(bytes);
  size_t begin = 0;
  for (size_t end = 0; (end = partial_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    TakeLine(std::string_view(partial_).substr(begin, end - begin));
  }
  partial_.erase(0, begin);
  if (partial_.size() > kLongestLine) {
    TakeLine(partial_);
    partial_.clear();
  }
}

void GroupOutput::TakeLine(std::string_view line) {
  // One write per line keeps it apart from the lines of this process.
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  if (IsError(line)) {
    if (error_.empty()) error_ = MessageOf(line).substr(0, kLongestReason);
    return;
  }
  // mpirun prints lines of dashes around its messages.
  if (other_.empty() && !IsTextLog(line) && !IsJsonLog(line) &&
      line.find_first_not_of("- \t\r") != std::string_view::npos) {
    other_ = line.substr(0, kLongestReason);
  }
}

}  // namespace apb::launcher
