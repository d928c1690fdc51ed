// The table of paths.
#include "server/http/route.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "engine/base/string_view.h"

namespace apb::http_api {
namespace {

constexpr std::string_view kGet = "GET, HEAD";
constexpr RouteEntry kRoutes[] = {
    {"/v1/completions", Route::kCompletions, "POST", false},
    {"/v1/chat/completions", Route::kChatCompletions, "POST", false},
    {"/v1/contexts", Route::kContexts, "POST, GET, HEAD", false},
    {"/tokenize", Route::kTokenize, "POST", false},
    {"/detokenize", Route::kDetokenize, "POST", false},
    {"/v1/models", Route::kModels, kGet, false},
    {"/health", Route::kHealth, kGet, true},
    {"/readyz", Route::kHealth, kGet, true},
    {"/livez", Route::kLive, kGet, true},
    {"/version", Route::kVersion, kGet, false},
    {"/metrics", Route::kMetrics, kGet, false},
};
// Paths that end with an id.
constexpr std::string_view kId = "{id}";
constexpr RouteEntry kIdRoutes[] = {
    {"/v1/models/{id}", Route::kModel, kGet, false},
    {"/v1/contexts/{id}", Route::kContext, "GET, HEAD, DELETE", false},
};

std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && absl::ascii_isxdigit(text[i + 1]) &&
        absl::ascii_isxdigit(text[i + 2])) {
      out.push_back(static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16)));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

bool Takes(const RouteEntry& route, std::string_view method) {
  for (absl::string_view one : absl::StrSplit(base::AbslView(route.methods), ", ")) {
    if (base::StdView(one) == method) return true;
  }
  return false;
}

const RouteEntry& FindRoute(std::string_view path) {
  for (const RouteEntry& entry : kRoutes) {
    if (entry.path == path) return entry;
  }
  for (const RouteEntry& entry : kIdRoutes) {
    const std::string_view prefix = entry.path.substr(0, entry.path.size() - kId.size());
    if (path.starts_with(prefix) && path.size() > prefix.size()) return entry;
  }
  return kUnknownRoute;
}

std::string IdOf(std::string_view path) {
  const std::string_view pattern = FindRoute(path).path;
  return PercentDecode(path.substr(pattern.size() - kId.size()));
}

}  // namespace apb::http_api
