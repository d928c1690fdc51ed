// Finds stop strings in streamed text, also across the borders of pieces: holds back the longest
// end of the text that could begin a stop string. Linear in the length of the text. One per stream;
// owned by the thread that feeds it.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::text {

inline constexpr size_t kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;

struct StopResult {
  // Text that may be shown now.
  std::string text;
  // Index of the stop string that was found; the stream is then over. The one that ends first wins;
  // of those, the longest.
  std::optional<size_t> matched;
};

class StopMatcher {
 public:
  // InvalidArgument for too many, too long or empty stop strings. No stop string: everything
  // passes.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stop_strings,
                                            bool include_stop_str);

  // Nothing comes out after a match.
  StopResult Push(std::string_view piece);
  // The end of the stream: what was held back.
  std::string Flush();

  const std::vector<std::string>& stop_strings() const { return stop_strings_; }

 private:
  StopMatcher(std::vector<std::string> stop_strings, bool include_stop_str);
  void Step(char byte);

  std::vector<std::string> stop_strings_;
  bool include_stop_str_;
  bool done_ = false;
  // For each stop string: the Knuth-Morris-Pratt failure table, and how much of it the text ends
  // with.
  std::vector<std::vector<int>> failure_;
  std::vector<int> state_;
  std::string held_;
};

}  // namespace apb::text
