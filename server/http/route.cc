// The rows of the table, and finding a request's row.
#include "server/http/route.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/string_view.h"
#include "server/http/errors.h"

namespace apb::http_api {

// These handlers are defined in handlers/.
Response Tokenize(const Call& call);
Response Detokenize(const Call& call);
Response ListContexts(const Call& call);
Response DescribeContext(const Call& call);
Response DeleteContext(const Call& call);
Response ListModels(const Call& call);
Response DescribeModel(const Call& call);
Response Health(const Call& call);
Response Live(const Call& call);
Response Version(const Call& call);
Response MetricsText(const Call& call);

namespace {

constexpr std::string_view kGet = "GET, HEAD";
constexpr std::string_view kId = "{id}";

constexpr Route kRoutes[] = {
    {"POST", "/v1/completions", true, ParseCompletion},
    {"POST", "/v1/chat/completions", true, ParseChat},
    {"POST", "/v1/contexts", true, ParseNewContext},
    {kGet, "/v1/contexts", true, ListContexts},
    {kGet, "/v1/contexts/{id}", true, DescribeContext},
    {"DELETE", "/v1/contexts/{id}", true, DeleteContext},
    {kGet, "/v1/models", true, ListModels},
    {kGet, "/v1/models/{id}", true, DescribeModel},
    {"POST", "/tokenize", true, SlowAnswer{Tokenize}},
    {"POST", "/detokenize", true, SlowAnswer{Detokenize}},
    {kGet, "/health", false, Health},
    {kGet, "/readyz", false, Health},
    {kGet, "/livez", false, Live},
    {kGet, "/version", true, Version},
    {kGet, "/metrics", true, MetricsText},
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

// The position of {id} in the pattern; npos without one.
size_t IdBegin(std::string_view pattern) {
  return pattern.ends_with(kId) ? pattern.size() - kId.size() : std::string_view::npos;
}

bool Fits(std::string_view pattern, std::string_view path) {
  const size_t begin = IdBegin(pattern);
  if (begin == std::string_view::npos) return pattern == path;
  return path.size() > begin && path.starts_with(pattern.substr(0, begin));
}

bool Takes(const Route& route, std::string_view method) {
  for (absl::string_view one : absl::StrSplit(base::AbslView(route.methods), ", ")) {
    if (base::StdView(one) == method) return true;
  }
  return false;
}

// The methods of all rows with this path.
std::string AllowOf(std::string_view path) {
  std::string allow;
  for (const Route& route : kRoutes) {
    if (route.path != path) continue;
    absl::StrAppend(&allow, allow.empty() ? "" : ", ", base::AbslView(route.methods));
  }
  return allow;
}

std::string AllPaths() {
  std::vector<std::string> paths;
  for (const Route& route : kRoutes) {
    if (std::ranges::find(paths, route.path) == paths.end()) paths.emplace_back(route.path);
  }
  return absl::StrJoin(paths, ", ");
}

}  // namespace

std::span<const Route> Routes() { return kRoutes; }

RouteMatch FindRoute(std::string_view path, std::string_view method) {
  RouteMatch match;
  for (const Route& route : kRoutes) {
    if (!Fits(route.path, path)) continue;
    match.path = route.path;
    match.needs_key = route.needs_key;
    const size_t begin = IdBegin(route.path);
    if (begin != std::string_view::npos) match.id = PercentDecode(path.substr(begin));
    if (Takes(route, method)) {
      match.route = &route;
      break;
    }
  }
  return match;
}

Response NoRouteResponse(const RouteMatch& match, std::string_view method) {
  const std::string allow = AllowOf(match.path);
  if (allow.empty()) return HttpErrorResponse(404, absl::StrCat("no such path; see ", AllPaths()));
  Response response = HttpErrorResponse(405, absl::StrCat(base::AbslView(match.path), " takes ",
                                                          allow, ", not ", base::AbslView(method)));
  response.headers.emplace_back("Allow", allow);
  return response;
}

}  // namespace apb::http_api
