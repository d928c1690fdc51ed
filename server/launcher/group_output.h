// The output of mpirun and the ranks of a local group. It passes each line on to standard error,
// and remembers the line that tells why the group has ended. For use by one thread.
#pragma once

#include <string>
#include <string_view>

namespace apb::launcher {

class GroupOutput {
 public:
  // Without descriptors if the system gives none; the group's output is then not seen.
  GroupOutput();
  ~GroupOutput();
  GroupOutput(const GroupOutput&) = delete;
  GroupOutput& operator=(const GroupOutput&) = delete;

  int read_end() const { return read_end_; }  // readable when something was printed
  // For the processes to write to. -1: their output goes elsewhere.
  int write_end() const { return write_end_; }

  // Passes on the lines that are there, without waiting.
  void PassOn();
  // The same at the group's end; also passes on a last line without a newline.
  void PassOnRest();
  // The first error that a rank has logged; else the first line that is not a rank's log; else
  // empty.
  const std::string& reason() const { return error_.empty() ? other_ : error_; }

 private:
  void Take(std::string_view bytes);
  void TakeLine(std::string_view line);

  int read_end_ = -1, write_end_ = -1;
  std::string partial_;  // the beginning of an unfinished line
  std::string error_, other_;
};

}  // namespace apb::launcher
