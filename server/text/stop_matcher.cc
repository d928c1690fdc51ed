// One Knuth-Morris-Pratt automaton runs for each stop string. The text that is held back is the
// longest of their partial matches.
#include "server/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace apb::text {

absl::StatusOr<StopMatcher> StopMatcher::Create(std::vector<std::string> stop_strings,
                                                bool include_stop_str) {
  if (stop_strings.size() > kMaxStopStrings)
    return absl::InvalidArgumentError(
        absl::StrCat(stop_strings.size(), " stop strings, the limit is ", kMaxStopStrings));
  for (const std::string& stop : stop_strings) {
    if (stop.empty()) return absl::InvalidArgumentError("a stop string is empty");
    if (stop.size() > kMaxStopStringBytes)
      return absl::InvalidArgumentError(absl::StrCat("a stop string has ", stop.size(),
                                                     " bytes, the limit is ", kMaxStopStringBytes));
  }
  return StopMatcher(std::move(stop_strings), include_stop_str);
}

StopMatcher::StopMatcher(std::vector<std::string> stop_strings, bool include_stop_str)
    : stop_strings_(std::move(stop_strings)),
      include_stop_str_(include_stop_str),
      state_(stop_strings_.size(), 0) {
  for (const std::string& stop : stop_strings_) {
    std::vector<int> failure(stop.size(), 0);
    for (size_t i = 1; i < stop.size(); ++i) {
      int length = failure[i - 1];
      while (length > 0 && stop[i] != stop[length]) length = failure[length - 1];
      failure[i] = stop[i] == stop[length] ? length + 1 : 0;
    }
    failure_.push_back(std::move(failure));
  }
}

void StopMatcher::Step(char byte) {
  for (size_t i = 0; i < stop_strings_.size(); ++i) {
    int& length = state_[i];
    while (length > 0 && stop_strings_[i][length] != byte) length = failure_[i][length - 1];
    if (stop_strings_[i][length] == byte) ++length;
  }
}

StopResult StopMatcher::Push(std::string_view piece) {
  StopResult result;
  if (done_) return result;
  for (const char byte : piece) {
    held_ += byte;
    Step(byte);
    size_t best = 0;  // length of the longest stop string that ends here
    for (size_t i = 0; i < stop_strings_.size(); ++i) {
      const size_t size = stop_strings_[i].size();
      if (state_[i] == static_cast<int>(size) && size > best) {
        best = size;
        result.matched = i;
      }
    }
    if (result.matched) {
      if (!include_stop_str_) held_.resize(held_.size() - best);
      result.text = std::move(held_);
      held_.clear();
      done_ = true;
      return result;
    }
  }
  const size_t kept = state_.empty() ? 0 : *std::max_element(state_.begin(), state_.end());
  result.text = held_.substr(0, held_.size() - kept);
  held_.erase(0, held_.size() - kept);
  return result;
}

std::string StopMatcher::Flush() {
  done_ = true;
  return std::exchange(held_, "");
}

}  // namespace apb::text
