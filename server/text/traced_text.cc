// Origins of single bytes are stored only after a change; until then all bytes follow the first
// one.
#include "server/text/traced_text.h"

#include <utility>

namespace apb::text {

TracedView TracedView::Part(size_t from, size_t to) const {
  if (origins.empty())
    return {text.substr(from, to - from), begin + static_cast<uint32_t>(from), {}};
  return {text.substr(from, to - from), 0, origins.subspan(from, to - from)};
}

TracedText::TracedText(const TracedView& view)
    : text_(view.text), begin_(view.begin), origins_(view.origins.begin(), view.origins.end()) {}

void Rewriter::CopyTo(size_t end) {
  out_->text_.append(source_.text_, done_, end - done_);
  const TracedView source = source_.view();
  for (; done_ < end; ++done_) out_->origins_.push_back(source.Origin(done_));
}

void Rewriter::Replace(ByteRange range, std::string_view content) {
  if (!out_.has_value()) {
    out_.emplace(TracedView{});
    out_->text_.reserve(source_.text_.size() + content.size());
    out_->origins_.reserve(source_.text_.size() + content.size());
  }
  CopyTo(range.begin);
  out_->text_.append(content);
  if (!content.empty())
    out_->origins_.insert(out_->origins_.end(), content.size(), source_.view().Origin(range.begin));
  done_ = range.end;
}

void Rewriter::Finish() {
  if (!out_.has_value()) return;
  CopyTo(source_.text_.size());
  source_ = *std::move(out_);
}

}  // namespace apb::text
