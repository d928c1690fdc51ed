// Writes one line per event to standard error: `I 2026-01-01T12:00:00.123456Z file:line rank=3
// message`. Control characters are escaped, so that user data cannot forge lines. Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace apb::base {

enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };

// Drops lines below the level. The default is kInfo.
void SetLogLevel(LogLevel level);
// debug, info, warning or error. False: `text` is none of them, and `level` is unchanged.
bool ParseLogLevel(std::string_view text, LogLevel* level);
// Writes JSON objects instead of text lines.
void SetLogJson(bool json);
// Puts `context`, e.g. "rank=3", into every line from now on. Call it before threads start.
void SetLogContext(std::string context);
bool LogEnabled(LogLevel level);
void Log(LogLevel level, const char* file, int line, std::string_view message);

}  // namespace apb::base

// APB_LOG(Info, "loaded model=", name, " seconds=", s): the arguments are those of absl::StrCat.
#define APB_LOG(level, ...)                                                 \
  do {                                                                      \
    if (::apb::base::LogEnabled(::apb::base::LogLevel::k##level))           \
      ::apb::base::Log(::apb::base::LogLevel::k##level, __FILE__, __LINE__, \
                       absl::StrCat(__VA_ARGS__));                          \
  } while (false)
