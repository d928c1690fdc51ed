// Goal: a context ends when it is unused for its time to live, when it is deleted, and with its
// group; the group is told exactly once; places are counted. Method: a clock that the test moves,
// and scripted groups.
#include "server/contexts/context_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "server/request/status_map.h"
#include "tests/server/scripted_group.h"

namespace apb::contexts {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class ContextStoreTest : public testing::Test {
 protected:
  Context Make(const std::string& id, int64_t ttl_seconds, uint64_t sequence = 1,
               const std::string& owner = "me") {
    Context context;
    context.id = id;
    context.owner = owner;
    context.created = now();
    context.ttl = absl::Seconds(ttl_seconds);
    context.prompt.tokens = {1, 2, 3};
    context.group = group_;
    context.sequence = sequence;
    return context;
  }
  void Add(Context context) {
    ASSERT_TRUE(store_.Reserve().ok());
    store_.Add(std::move(context));
  }
  absl::Time now() const { return absl::FromUnixSeconds(1'000'000 + seconds_); }
  std::string CodeOfUse(const std::string& id) {
    return request::ErrorCodeOf(store_.Use("me", id).status());
  }

  std::atomic<int64_t> seconds_{0};
  observability::Metrics metrics_{"model", "0"};
  std::shared_ptr<server_test::ScriptedConnection> connection_ =
      std::make_shared<server_test::ScriptedConnection>();
  std::shared_ptr<cluster::WorkerGroup> group_ =
      std::make_shared<cluster::WorkerGroup>(server_test::HelloOf("g"), connection_);
  ContextStore store_{{.max_contexts = 2, .now = [this] { return now(); }}, metrics_};
};

TEST_F(ContextStoreTest, ExpiresWhenNobodyHasUsedItForItsTimeToLive) {
  Add(Make("a", 10, 7));
  seconds_ = 9;
  EXPECT_EQ(store_.Expire(), now() + absl::Seconds(1));
  EXPECT_TRUE(store_.Use("me", "a").ok());  // its time begins anew
  seconds_ = 18;
  EXPECT_TRUE(store_.Describe("me", "a").ok());  // this changes nothing
  EXPECT_EQ(store_.Expire(), now() + absl::Seconds(1));
  EXPECT_THAT(connection_->cancels(), IsEmpty());
  seconds_ = 19;
  EXPECT_EQ(CodeOfUse("a"), "context_not_found") << "also before the thread has looked";
  EXPECT_THAT(store_.List("me"), IsEmpty());
  EXPECT_EQ(store_.Expire(), absl::InfiniteFuture());
  EXPECT_THAT(connection_->cancels(), ElementsAre(7));
}

TEST_F(ContextStoreTest, ItsThreadExpiresByItself) {
  ContextStore store({.max_contexts = 1}, metrics_);  // on the real clock
  ASSERT_TRUE(store.Reserve().ok());
  Context context = Make("a", 0, 7);
  context.ttl = absl::Milliseconds(20);
  store.Add(std::move(context));
  const absl::Time limit = absl::Now() + absl::Minutes(2);
  while (connection_->cancels().empty() && absl::Now() < limit) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_THAT(connection_->cancels(), ElementsAre(7));
}

TEST_F(ContextStoreTest, OthersAreToldThatThereIsNone) {
  Add(Make("a", 10));
  EXPECT_EQ(store_.Use("you", "a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_.Describe("you", "a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_.Delete("you", "a").code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(store_.List("you"), IsEmpty());
  EXPECT_EQ(store_.List("me").size(), 1U);
}

TEST_F(ContextStoreTest, DeletingGivesUpItsKvAndItsPlace) {
  Add(Make("a", 10, 7));
  Add(Make("b", 10, 8));
  const absl::Status full = store_.Reserve();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(request::RetryAfterOf(full), 0);
  EXPECT_TRUE(store_.Delete("me", "a").ok());
  EXPECT_FALSE(store_.Delete("me", "a").ok());
  EXPECT_THAT(connection_->cancels(), ElementsAre(7));
  EXPECT_TRUE(store_.Reserve().ok());
  EXPECT_FALSE(store_.Reserve().ok()) << "a place that is reserved counts";
  store_.Unreserve();
  EXPECT_TRUE(store_.Reserve().ok());
}

TEST_F(ContextStoreTest, AreListedInTheOrderOfTheirCreation) {
  Add(Make("b", 10));
  seconds_ = 1;
  Add(Make("a", 10));
  const auto infos = store_.List("me");
  ASSERT_EQ(infos.size(), 2U);
  EXPECT_EQ(infos[0].id, "b");
  EXPECT_EQ(infos[0].prompt_tokens, 3);
  EXPECT_EQ(infos[1].expires_at, now() + absl::Seconds(10));
}

TEST_F(ContextStoreTest, AreLostWithTheirGroupAndMakeRoom) {
  Add(Make("a", 10));
  Add(Make("b", 10));
  group_->OnLost("killed");
  EXPECT_EQ(CodeOfUse("a"), "context_lost");
  EXPECT_TRUE(store_.Describe("me", "a")->is_lost);
  EXPECT_EQ(store_.List("me").size(), 2U);
  EXPECT_TRUE(store_.Reserve().ok()) << "what is lost keeps nobody out";
}

TEST_F(ContextStoreTest, AGroupThatLeavesTakesNoMoreRequests) {
  Add(Make("a", 10));
  cluster::v1::FromWorker leaving;
  leaving.mutable_leaving();
  group_->OnMessage(leaving);
  EXPECT_EQ(CodeOfUse("a"), "context_lost");
}

TEST_F(ContextStoreTest, UseAndExpiryRaceWithoutATrace) {
  for (int i = 0; i < 200; ++i) {
    const size_t before = connection_->cancels().size();
    Add(Make("a", 1));
    std::thread user([&] { (void)store_.Use("me", "a"); });
    seconds_ += 1;
    store_.Expire();
    user.join();
    seconds_ += 1;
    store_.Expire();
    ASSERT_EQ(connection_->cancels().size(), before + 1) << "given up exactly once";
    ASSERT_THAT(store_.List("me"), IsEmpty());
  }
}

}  // namespace
}  // namespace apb::contexts
