// What mpirun and the ranks of a local group print: passed on to standard error line by line, and
// searched for the line that tells why a group has ended. Of one thread.
#pragma once

#include <string>
#include <string_view>

namespace apb::launcher {

class GroupOutput {
 public:
  GroupOutput();  // without descriptors where the system gives none; output is then not seen
  ~GroupOutput();
  GroupOutput(const GroupOutput&) = delete;
  GroupOutput& operator=(const GroupOutput&) = delete;

  int read_end() const { return read_end_; }  // readable when something was printed
  int write_end() const {
    return write_end_;
  }  // for the processes; -1: their output goes elsewhere

  // Passes on what is there, without waiting.
  void PassOn();
  // The same at the group's end, with a last line that has no end.
  void PassOnRest();
  // The first error that a rank has logged, else the first line that was not a rank's log, else
  // empty.
  const std::string& reason() const { return error_.empty() ? other_ : error_; }

 private:
  void Take(std::string_view bytes);
  void TakeLine(std::string_view line);

  int read_end_ = -1, write_end_ = -1;
  std::string partial_;  // the beginning of a line
  std::string error_, other_;
};

}  // namespace apb::launcher
