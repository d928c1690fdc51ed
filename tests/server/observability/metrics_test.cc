// Goal: events are counted under the names and labels that the docs promise to dashboards, and a
// lost group holds no blocks. Method: events go in, the text format comes out.
#include "server/observability/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace apb::observability {
namespace {

using testing::HasSubstr;

TEST(Metrics, CountsRequestsByOutcome) {
  Metrics metrics("demo", "1");
  EXPECT_THAT(metrics.Serialize(), HasSubstr("outcome=\"cancelled\",strategy=\"\"} 0"))
      << "there from the start, so that rates are defined";
  metrics.RequestFinished({.outcome = "ok",
                           .finish_reason = "stop",
                           .strategy = "full",
                           .prompt_tokens = 5,
                           .generated_tokens = 3});
  metrics.RequestRejected("queue_full");
  metrics.SetRequests(2, 1, 40);
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr("outcome=\"ok\",strategy=\"full\"} 1"));
  EXPECT_THAT(text, HasSubstr("reason=\"queue_full\"} 1"));
  EXPECT_THAT(text, HasSubstr("model=\"demo\""));
}

TEST(Metrics, AGroupThatIsLostHoldsNothing) {
  Metrics metrics("demo", "1");
  metrics.GroupConnected("g", 1, "bfloat16", "int8", 16, 1024, 3);
  metrics.GroupStats(
      {.group = "g",
       .ranks = {{.kv_blocks_used = 3, .kv_blocks_cached = 5, .kv_blocks_total = 10}}});
  for (const char* blocks : {"state=\"used\"} 3", "state=\"cached\"} 5", "state=\"free\"} 2"}) {
    EXPECT_THAT(metrics.Serialize(), HasSubstr(blocks));
  }
  metrics.GroupLost("g");
  for (const char* state : {"used", "cached", "pinned", "free"}) {
    EXPECT_THAT(metrics.Serialize(), HasSubstr("state=\"" + std::string(state) + "\"} 0"));
  }
}

TEST(Metrics, CountersOfAGroupThatStartsAgainGoOn) {
  Metrics metrics("demo", "1");
  // Counts since the group's start; the last one is from a restarted group.
  for (const int64_t count : {10, 15, 4}) {
    metrics.GroupStats({.group = "g", .prompt_tokens_computed = count});
  }
  EXPECT_THAT(metrics.Serialize(), HasSubstr("computed_total{model=\"demo\",group=\"g\"} 19"));
}

}  // namespace
}  // namespace apb::observability
