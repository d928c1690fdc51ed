// Adjacent spans of the same origin are kept as one.
#include "server/text/jinja/text.h"

#include <algorithm>

namespace apb::text::jinja {

Text::Text(std::string bytes, const std::optional<Origin>& origin) : bytes_(std::move(bytes)) {
  if (origin) AddSpan({0, bytes_.size(), *origin});
}

std::optional<Origin> Text::FirstOrigin() const {
  if (spans_.empty()) return std::nullopt;
  return spans_.front().origin;
}

void Text::AddSpan(const Span& span) {
  if (span.begin == span.end) return;
  if (!spans_.empty() && spans_.back().end == span.begin && spans_.back().origin == span.origin) {
    spans_.back().end = span.end;
  } else {
    spans_.push_back(span);
  }
}

void Text::Append(const Text& other) {
  const size_t offset = bytes_.size();
  bytes_ += other.bytes_;
  for (const Span& span : other.spans_)
    AddSpan({offset + span.begin, offset + span.end, span.origin});
}

Text Text::Substr(size_t begin, size_t end) const {
  Text part(bytes_.substr(begin, end - begin));
  for (const Span& span : spans_) {
    const size_t from = std::max(begin, span.begin), to = std::min(end, span.end);
    if (from < to) part.AddSpan({from - begin, to - begin, span.origin});
  }
  return part;
}

}  // namespace apb::text::jinja
