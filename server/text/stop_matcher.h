// Finds stop strings in streamed text, also across the borders of pieces. It holds back the longest
// end of the text that could begin a stop string. Time is linear in the length of the text. One per
// stream; the thread that feeds it owns it.
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
  // The index of the stop string that was found; the stream is then over. The stop string that ends
  // first wins; among those, the longest.
  std::optional<size_t> matched;
};

class StopMatcher {
 public:
  // kInvalidArgument for too many, too long or empty stop strings. Without stop strings all text
  // passes. `include_stop_str`: the text ends after the match instead of before it.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stop_strings,
                                            bool include_stop_str);

  // Returns no text after a match.
  StopResult Push(std::string_view piece);
  // Returns the text that was held back; call it at the end of the stream.
  std::string Flush();

  const std::vector<std::string>& stop_strings() const { return stop_strings_; }

 private:
  StopMatcher(std::vector<std::string> stop_strings, bool include_stop_str);
  void Step(char byte);

  std::vector<std::string> stop_strings_;
  bool include_stop_str_;
  bool done_ = false;
  // For each stop string: its Knuth-Morris-Pratt failure table, and the length of its prefix with
  // which the text ends.
  std::vector<std::vector<int>> failure_;
  std::vector<int> state_;
  std::string held_;
};

}  // namespace apb::text
