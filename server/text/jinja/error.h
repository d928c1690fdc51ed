// The exception of template parsing and rendering. ChatTemplate's two entry points catch it.
#pragma once

#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace apb::text::jinja {

class TemplateError : public std::exception {
 public:
  explicit TemplateError(absl::Status status) : status_(std::move(status)) {}
  const char* what() const noexcept override { return "template error"; }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// kInvalidArgument: the template, or the values that it was given, make no sense.
template <typename... Parts>
[[noreturn]] void Fail(const Parts&... parts) {
  throw TemplateError(absl::InvalidArgumentError(absl::StrCat(parts...)));
}

// kUnimplemented: Jinja has this feature, but this subset does not.
template <typename... Parts>
[[noreturn]] void FailUnsupported(const Parts&... parts) {
  throw TemplateError(absl::UnimplementedError(absl::StrCat(parts...)));
}

}  // namespace apb::text::jinja
