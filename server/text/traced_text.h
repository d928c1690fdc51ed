// Text on its way to tokens that knows, through all changes by normalizers and pre-tokenizers,
// where in the caller's text its bytes came from. The offsets of tokens are computed from it.
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

// A piece of such a text. Positions in the caller's text have 32 bits: a text of 4 GiB would have
// more tokens than ids can count.
struct TracedView {
  std::string_view text;
  // The position from which the first byte came. The other bytes follow it, unless `origins` gives
  // each byte its own; ascending.
  uint32_t begin = 0;
  std::span<const uint32_t> origins;

  // The position from which the byte at `pos` came.
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

// One pass of changes over a text, from left to right. It copies nothing before the first change.
class Rewriter {
 public:
  // `text` is unchanged until Finish, and must outlive the rewriter.
  explicit Rewriter(TracedText& text) : source_(text) {}

  // Puts `content` in the place of `range`; its bytes then come from the range's begin. Ranges must
  // be disjoint and ascending. An empty range inserts before the character at its begin.
  void Replace(ByteRange range, std::string_view content);
  void Finish();

 private:
  void CopyTo(size_t end);

  TracedText& source_;
  size_t done_ = 0;  // bytes of the source that were copied or replaced
  std::optional<TracedText> out_;
};

}  // namespace apb::text
