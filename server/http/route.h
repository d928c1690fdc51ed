// The paths that the HTTP side answers.
#pragma once

#include <string>
#include <string_view>

namespace apb::http_api {

enum class Route {
  kCompletions,
  kChatCompletions,
  kTokenize,
  kDetokenize,
  kModels,
  kModel,
  kHealth,
  kLive,
  kVersion,
  kMetrics,
  kUnknown,
};

struct RouteEntry {
  std::string_view path;  // as metrics have it: of a pattern, not of a request
  Route route;
  bool is_post;
  bool is_open;  // needs no API key
};

inline constexpr RouteEntry kUnknownRoute = {"unknown", Route::kUnknown, false, false};

// `path` without what follows a question mark. kUnknownRoute when there is none.
const RouteEntry& FindRoute(std::string_view path);

// The id of Route::kModel, percent-decoded.
std::string ModelOf(std::string_view path);

}  // namespace apb::http_api
