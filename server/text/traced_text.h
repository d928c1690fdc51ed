// Text on its way to tokens that knows where its bytes came from, through all that normalizers and
// pre-tokenizers change in it: what the offsets of tokens are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/byte_range.h"

namespace apb::text {

// A piece of such a text. Places in the caller's text have 32 bits: a text of 4 GiB would have more
// tokens than ids can count.
struct TracedView {
  std::string_view text;
  uint32_t begin = 0;  // where the first byte came from, and the others follow it, unless
  std::span<const uint32_t> origins;  // each byte has its own; ascending

  // Where the byte at `pos` came from.
  uint32_t Origin(size_t pos) const {
    return origins.empty() ? begin + static_cast<uint32_t>(pos) : origins[pos];
  }
  TracedView Part(size_t from, size_t to) const;
};

class TracedText {
 public:
  explicit TracedText(const TracedView& view);

  TracedView view() const { return {text_, begin_, origins_}; }

 private:
  friend class Rewriter;
  std::string text_;
  uint32_t begin_ = 0;
  std::vector<uint32_t> origins_;
};

// One pass of changes over a text, from left to right. Nothing is copied before the first change.
class Rewriter {
 public:
  // `text` stays as it is until Finish.
  explicit Rewriter(TracedText& text) : source_(text) {}

  // Puts `content` in the place of `range`, where it then comes from. Ranges are disjoint and
  // ascending; an empty one at the begin of a character is an insertion before that one.
  void Replace(ByteRange range, std::string_view content);
  void Finish();

 private:
  void CopyTo(size_t end);

  TracedText& source_;
  size_t done_ = 0;  // bytes of the source that were copied or replaced
  std::optional<TracedText> out_;
};

}  // namespace apb::text
