#include "engine/base/log.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/check.h"

namespace apb::base {
namespace {

std::atomic<LogLevel> minimum_level{LogLevel::kInfo};
std::atomic<bool> json_lines{false};

std::string& Context() {
  static std::string* context = new std::string;  // never destroyed: threads may log during exit
  return *context;
}

// Escapes characters that would break a line or a JSON string; bytes above 0x7f pass.
std::string Escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      if (json_lines) out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&out, "\\u%04x", c);
    } else {
      out.push_back(static_cast<char>(c));
    }
  }
  return out;
}

}  // namespace

void SetLogLevel(LogLevel level) { minimum_level = level; }
void SetLogJson(bool json) { json_lines = json; }
void SetLogContext(std::string context) { Context() = std::move(context); }
bool LogEnabled(LogLevel level) { return level >= minimum_level; }

bool ParseLogLevel(std::string_view text, LogLevel* level) {
  static constexpr std::string_view kNames[] = {"debug", "info", "warning", "error"};
  for (int i = 0; i < 4; ++i) {
    if (text == kNames[i]) {
      *level = static_cast<LogLevel>(i);
      return true;
    }
  }
  return false;
}

void Log(LogLevel level, const char* file, int line, std::string_view message) {
  static constexpr const char* kLetters = "DIWE";
  std::string_view path(file);
  if (size_t slash = path.rfind('/'); slash != std::string_view::npos)
    path.remove_prefix(slash + 1);
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  const char letter = kLetters[static_cast<int>(level)];
  std::string text;
  if (json_lines) {
    text = absl::StrFormat(R"({"ts":"%s","level":"%c","at":"%s:%d","context":"%s","msg":"%s"})",
                           time, letter, path, line, Escape(Context()), Escape(message));
  } else {
    text = absl::StrFormat("%c %s %s:%d %s%s%s", letter, time, path, line, Context(),
                           Context().empty() ? "" : " ", Escape(message));
  }
  text.push_back('\n');
  // One write per line keeps the lines of threads apart.
  std::fwrite(text.data(), 1, text.size(), stderr);
}

void CheckFailed(const char* file, int line, const char* expression) {
  Log(LogLevel::kError, file, line, absl::StrCat("check failed: ", expression));
  std::abort();
}

}  // namespace apb::base
