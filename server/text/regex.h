// A regular expression of tokenizer.json. Such patterns are written for Oniguruma; those that PCRE2
// would read differently are rewritten or refused. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/text/byte_range.h"

struct pcre2_real_code_8;

namespace apb::text {

class Regex {
 public:
  // kUnimplemented for a pattern that is refused; kInvalidArgument for a broken one.
  static absl::StatusOr<Regex> Compile(const std::string& pattern);

  // All matches that are not empty, from left to right. `text` must be valid UTF-8.
  // kResourceExhausted if matching exceeds PCRE2's limits.
  absl::StatusOr<std::vector<ByteRange>> FindAll(std::string_view text) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace apb::text
