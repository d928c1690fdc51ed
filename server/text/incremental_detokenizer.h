// Turns token ids into text as soon as the text is certain; it never returns a part of a UTF-8
// character. All pieces together are the text that Tokenizer::Decode makes of all ids. One per
// stream; the thread that feeds it owns it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/text/tokenizer.h"

namespace apb::text {

class IncrementalDetokenizer {
 public:
  // The tokenizer must outlive this object.
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // Returns the text that this token completes; empty while a character is incomplete.
  // kInvalidArgument for an unknown id, which changes nothing.
  absl::StatusOr<std::string> Push(int32_t id);
  // Returns the bytes that were held back at the end, as U+FFFD. Push must not follow.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  DecodeState state_;
  std::string pending_;  // bytes of a character that is not complete yet
};

}  // namespace apb::text
