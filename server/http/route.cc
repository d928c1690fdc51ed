// The table of paths.
#include "server/http/route.h"

#include "absl/strings/ascii.h"

namespace apb::http_api {
namespace {

constexpr RouteEntry kRoutes[] = {
    {"/v1/completions", Route::kCompletions, true, false},
    {"/v1/chat/completions", Route::kChatCompletions, true, false},
    {"/tokenize", Route::kTokenize, true, false},
    {"/detokenize", Route::kDetokenize, true, false},
    {"/v1/models", Route::kModels, false, false},
    {"/health", Route::kHealth, false, true},
    {"/readyz", Route::kHealth, false, true},
    {"/livez", Route::kLive, false, true},
    {"/version", Route::kVersion, false, false},
    {"/metrics", Route::kMetrics, false, false},
};
constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr RouteEntry kModelRoute = {"/v1/models/{id}", Route::kModel, false, false};

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

const RouteEntry& FindRoute(std::string_view path) {
  for (const RouteEntry& entry : kRoutes) {
    if (entry.path == path) return entry;
  }
  const bool model = path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size();
  return model ? kModelRoute : kUnknownRoute;
}

std::string ModelOf(std::string_view path) {
  return PercentDecode(path.substr(kModelPrefix.size()));
}

}  // namespace apb::http_api
