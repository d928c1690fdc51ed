// Token ids in, text out as soon as it is certain: never half a UTF-8 character. All pieces put
// together are what Tokenizer::Decode makes of all ids. One per stream; owned by the thread that
// feeds it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/text/tokenizer.h"

namespace apb::text {

class IncrementalDetokenizer {
 public:
  // The tokenizer must outlive this.
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // The text that this token completes; empty while a character is not whole. InvalidArgument for
  // an unknown id, which then changes nothing.
  absl::StatusOr<std::string> Push(int32_t id);
  // What is held back at the end, as U+FFFD. Push may not follow.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  DecodeState state_;
  std::string pending_;  // bytes of a character that is not whole yet
};

}  // namespace apb::text
