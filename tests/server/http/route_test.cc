// Goal: the table of endpoints is complete, and the responses that list it are true. Method: every
// row of the table, and the paths and methods around it.
#include "server/http/route.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_split.h"

namespace apb::http_api {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

std::string PathOf(const Route& route) {
  std::string path(route.path);
  if (const size_t id = path.find("{id}"); id != std::string::npos) path.replace(id, 4, "a%2Fb");
  return path;
}

TEST(Route, EveryRowIsFoundByItsMethods) {
  std::set<std::string> seen;
  for (const Route& route : Routes()) {
    const std::vector<std::string> methods = absl::StrSplit(std::string(route.methods), ", ");
    for (const std::string& method : methods) {
      SCOPED_TRACE(method + " " + std::string(route.path));
      EXPECT_TRUE(seen.insert(method + " " + std::string(route.path)).second) << "twice";
      const RouteMatch match = FindRoute(PathOf(route), method);
      ASSERT_NE(match.route, nullptr);
      EXPECT_EQ(match.route->path, route.path);
      EXPECT_EQ(match.route->handler.index(), route.handler.index());
      EXPECT_EQ(match.path, route.path);
      EXPECT_EQ(match.needs_key, route.needs_key);
      EXPECT_EQ(match.id, route.path.ends_with("{id}") ? "a/b" : "");
    }
  }
}

TEST(Route, RowsOfAPathAgreeOnTheKey) {
  for (const Route& one : Routes()) {
    for (const Route& other : Routes()) {
      if (one.path != other.path) continue;
      EXPECT_EQ(one.needs_key, other.needs_key) << one.path;
    }
  }
}

TEST(Route, OnlyHealthIsOpen) {
  std::vector<std::string> open;
  for (const Route& route : Routes()) {
    if (!route.needs_key) open.emplace_back(route.path);
  }
  EXPECT_THAT(open, ElementsAre("/health", "/readyz", "/livez"));
}

TEST(Route, AnUnknownPathIsToldAllThatThereAre) {
  for (const char* path : {"/", "", "/v1", "/v1/completion", "/v1/completions/", "/v1/models/",
                           "/v1/contexts/", "/HEALTH"}) {
    const RouteMatch match = FindRoute(path, "GET");
    EXPECT_EQ(match.route, nullptr) << path;
    EXPECT_EQ(match.path, "unknown") << "metrics must not grow with what clients make up";
    EXPECT_TRUE(match.needs_key);
    const Response response = NoRouteResponse(match, "GET");
    EXPECT_EQ(response.status, 404);
    for (const Route& route : Routes()) EXPECT_THAT(response.body, HasSubstr(route.path));
  }
}

TEST(Route, AWrongMethodIsToldTheOnesOfAllRows) {
  struct Row {
    const char* path;
    const char* method;
    const char* allow;
  };
  for (const Row& row :
       {Row{"/v1/completions", "GET", "POST"}, Row{"/health", "POST", "GET, HEAD"},
        Row{"/v1/contexts", "DELETE", "POST, GET, HEAD"},
        Row{"/v1/contexts/x", "POST", "GET, HEAD, DELETE"},
        Row{"/v1/contexts/x", "", "GET, HEAD, DELETE"}, Row{"/tokenize", "OPTIONS", "POST"}}) {
    const RouteMatch match = FindRoute(row.path, row.method);
    EXPECT_EQ(match.route, nullptr) << row.path;
    const Response response = NoRouteResponse(match, row.method);
    EXPECT_EQ(response.status, 405);
    EXPECT_THAT(response.headers, ElementsAre(Pair("Allow", row.allow)));
    EXPECT_THAT(response.body, HasSubstr(row.allow));
  }
}

TEST(Route, IdsAreDecoded) {
  const auto id = [](const char* path) { return FindRoute(path, "GET").id; };
  EXPECT_EQ(id("/v1/models/org/name"), "org/name");
  EXPECT_EQ(id("/v1/models/org%2fname"), "org/name");
  EXPECT_EQ(id("/v1/models/100%"), "100%");
  EXPECT_EQ(id("/v1/models/%4"), "%4");
  EXPECT_EQ(id("/v1/models/%zz%41"), "%zzA");
}

}  // namespace
}  // namespace apb::http_api
