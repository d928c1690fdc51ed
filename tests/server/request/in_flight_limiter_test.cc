// Goal: one request or one token more than may wait is refused, and requests that leave make room.
// Method: the limiter alone.
#include "server/request/in_flight_limiter.h"

#include <gtest/gtest.h>

#include "server/request/api_keys.h"
#include "server/request/status_map.h"

namespace apb::request {
namespace {

class InFlightLimiterTest : public testing::Test {
 protected:
  observability::Metrics metrics_{"model", "0"};
  InFlightLimiter limiter_{{.waiting_requests = 2, .waiting_tokens = 100}, metrics_};
  int64_t ahead_ = -1;
};

TEST_F(InFlightLimiterTest, TheOrderOfArrivalIsThePosition) {
  EXPECT_TRUE(limiter_.AddWaiting(&ahead_).ok());
  EXPECT_EQ(ahead_, 0);
  EXPECT_TRUE(limiter_.AddWaiting(&ahead_).ok());
  EXPECT_EQ(ahead_, 1);
  const absl::Status full = limiter_.AddWaiting(&ahead_);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfterOf(full), 1);
  EXPECT_EQ(limiter_.waiting(), 2) << "who is turned away does not count";
  limiter_.StartRunning(0);
  EXPECT_TRUE(limiter_.AddWaiting(&ahead_).ok()) << "who runs does not wait";
  EXPECT_EQ(limiter_.running(), 1);
  limiter_.EndRunning();
  limiter_.EndWaiting(0);
  limiter_.EndWaiting(0);
  EXPECT_EQ(limiter_.waiting(), 0);
  EXPECT_EQ(limiter_.running(), 0);
}

TEST_F(InFlightLimiterTest, TokensAtBelowAndAboveTheLimit) {
  EXPECT_TRUE(limiter_.AddTokens(60).ok());
  EXPECT_TRUE(limiter_.AddTokens(40).ok());
  const absl::Status full = limiter_.AddTokens(1);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfterOf(full), 2);
  limiter_.EndWaiting(40);
  EXPECT_TRUE(limiter_.AddTokens(40).ok());
}

TEST_F(InFlightLimiterTest, APromptThatWaitsAloneMayHaveAnyLength) {
  EXPECT_TRUE(limiter_.AddTokens(1000).ok());
  EXPECT_FALSE(limiter_.AddTokens(1).ok());
  limiter_.StartRunning(1000);
  EXPECT_TRUE(limiter_.AddTokens(1000).ok());
}

TEST(ApiKeys, OneOfTheKeysOrNoneAtAll) {
  EXPECT_TRUE(IsAllowed({}, ""));
  EXPECT_TRUE(IsAllowed({}, "anything"));
  EXPECT_TRUE(IsAllowed({"one", "two"}, "two"));
  for (const char* wrong : {"", "tw", "twoo", "TWO", "onetwo"}) {
    EXPECT_FALSE(IsAllowed({"one", "two"}, wrong)) << wrong;
  }
  EXPECT_EQ(OwnerOf({}, "key"), "") << "without keys all contexts are everybody's";
  EXPECT_EQ(OwnerOf({"key"}, "key"), "key");
}

TEST(StatusMap, EveryCodeHasARow) {
  for (int code = 0; code <= 16; ++code) {
    const auto status = static_cast<absl::StatusCode>(code);
    EXPECT_EQ(CodeName(status), absl::StatusCodeToString(status)) << "as gRPC names it";
    EXPECT_EQ(HttpErrorOf(status).status == 200, code == 0);
  }
  EXPECT_EQ(HttpErrorOf(static_cast<absl::StatusCode>(99)).status, 500);
}

TEST(StatusMap, DetailsTravelInTheStatus) {
  const absl::Status status =
      WithRetryAfter(WithErrorCode(InvalidField("top_p", "is wrong"), "code"), 7);
  EXPECT_EQ(status.message(), "top_p: is wrong");
  EXPECT_EQ(FieldOf(status), "top_p");
  EXPECT_EQ(ErrorCodeOf(status), "code");
  EXPECT_EQ(RetryAfterOf(status), 7);
  EXPECT_EQ(FieldOf(absl::InternalError("")), "");
  EXPECT_EQ(RetryAfterOf(absl::InternalError("")), 0);
}

}  // namespace
}  // namespace apb::request
