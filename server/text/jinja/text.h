// Text that remembers which of its bytes came from the caller.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace apb::text::jinja {

// The place from which a byte came: a message (-1: tools or template arguments), and whether it is
// that message's content.
struct Origin {
  int message_index = -1;
  bool is_content = false;

  bool operator==(const Origin&) const = default;
};

class Text {
 public:
  struct Span {
    size_t begin, end;
    Origin origin;
  };

  Text() = default;
  // All of it was written by the template.
  explicit Text(std::string bytes) : bytes_(std::move(bytes)) {}
  // All of it has one origin; without `origin` it was written by the template.
  Text(std::string bytes, const std::optional<Origin>& origin);

  const std::string& bytes() const { return bytes_; }
  // The bytes that came from the caller; ascending and disjoint.
  const std::vector<Span>& spans() const { return spans_; }
  // The origin of the first byte that came from the caller.
  std::optional<Origin> FirstOrigin() const;

  void Append(const Text& other);
  void Append(std::string_view bytes) { bytes_.append(bytes); }
  Text Substr(size_t begin, size_t end) const;

 private:
  void AddSpan(const Span& span);

  std::string bytes_;
  std::vector<Span> spans_;
};

}  // namespace apb::text::jinja
