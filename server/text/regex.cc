// PCRE2 with its just-in-time compiler; its interpreter takes over when the compiled code runs out
// of stack.
#include "server/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::text {
namespace {

// PCRE2's \s includes U+180E, which left Unicode's White_Space long ago.
constexpr char kWhiteSpace[] =
    R"(\x{09}-\x{0D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
// Escapes with the same meaning in both.
constexpr std::string_view kSameEscapes = "pPdDwWbBrntfvAzZx";

constexpr uint32_t kMatchLimit = 1u << 30;

bool IsQuantifierEnd(const std::string& pattern, size_t brace) {
  // {n}+, {n,}+ and {n,m}+ repeat the repetition in Oniguruma but are possessive in PCRE2.
  size_t i = brace + 1;
  while (i < pattern.size() &&
         (std::isdigit(static_cast<unsigned char>(pattern[i])) || pattern[i] == ','))
    ++i;
  return i > brace + 1 && i + 1 < pattern.size() && pattern[i] == '}' && pattern[i + 1] == '+';
}

absl::StatusOr<std::string> Translate(const std::string& pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (++i == pattern.size())
        return absl::InvalidArgumentError("the pattern ends with a backslash");
      const char escape = pattern[i];
      if (escape == 's') {
        absl::StrAppend(&out, in_class ? "" : "[", kWhiteSpace, in_class ? "" : "]");
      } else if (escape == 'S' && !in_class) {
        absl::StrAppend(&out, "[^", kWhiteSpace, "]");
      } else if (std::isalnum(static_cast<unsigned char>(escape)) &&
                 kSameEscapes.find(escape) == std::string_view::npos) {
        return absl::UnimplementedError(
            absl::StrCat("escape \\", std::string(1, escape), in_class ? " in a class" : ""));
      } else {
        out += {c, escape};
      }
      continue;
    }
    if (in_class) {
      if (c == '[' || (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&'))
        return absl::UnimplementedError("a class within a class");
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']')
        return absl::UnimplementedError("a class that begins with ]");
      continue;
    } else if (c == '{' && IsQuantifierEnd(pattern, i)) {
      return absl::UnimplementedError("a + after a counted repetition");
    }
    out += c;
  }
  return out;
}

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[160];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern) {
  auto translated = Translate(pattern);
  if (!translated.ok())
    return absl::Status(
        translated.status().code(),
        absl::StrCat("regular expression \"", pattern, "\": ", translated.status().message()));
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()),
                                  translated->size(), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                                  &error, &offset, nullptr));
  if (regex.code_ == nullptr)
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern, "\": ", ErrorText(error)));
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);  // without it matching is slower
  return regex;
}

absl::StatusOr<std::vector<ByteRange>> Regex::FindAll(std::string_view text) const {
  thread_local const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create(1, nullptr));
  thread_local const std::unique_ptr<pcre2_match_context, FreeContext> context = [] {
    pcre2_match_context* made = pcre2_match_context_create(nullptr);
    pcre2_set_match_limit(made, kMatchLimit);
    return std::unique_ptr<pcre2_match_context, FreeContext>(made);
  }();
  std::vector<ByteRange> matches;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t pos = 0;
  while (pos < text.size()) {
    // Checking the whole subject at every match would make this loop quadratic.
    int rc = pcre2_match(code_.get(), subject, text.size(), pos, PCRE2_NO_UTF_CHECK, data.get(),
                         context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(code_.get(), subject, text.size(), pos, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       data.get(), context.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0)
      return absl::ResourceExhaustedError(absl::StrCat(
          "the tokenizer's regular expression gave up at byte ", pos, ": ", ErrorText(rc)));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] > range[0]) {
      matches.push_back({range[0], range[1]});
      pos = range[1];
    } else {  // an empty match: go on after the next character
      pos = range[1] + 1;
      while (pos < text.size() && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) ++pos;
    }
  }
  return matches;
}

}  // namespace apb::text
