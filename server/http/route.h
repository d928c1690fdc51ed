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
  kContexts,
  kContext,
  kHealth,
  kLive,
  kVersion,
  kMetrics,
  kUnknown,
};

struct RouteEntry {
  std::string_view path;  // as metrics have it: of a pattern, not of a request
  Route route;
  std::string_view methods;  // as the Allow header has them
  bool is_open;              // needs no API key
};

inline constexpr RouteEntry kUnknownRoute = {"unknown", Route::kUnknown, "", false};

// Whether `methods` of a route has this one.
bool Takes(const RouteEntry& route, std::string_view method);

// `path` without what follows a question mark. kUnknownRoute when there is none.
const RouteEntry& FindRoute(std::string_view path);

// The {id} at the end of such a path, percent-decoded.
std::string IdOf(std::string_view path);

}  // namespace apb::http_api
