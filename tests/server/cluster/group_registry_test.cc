// Goal: the right groups may connect, the right one takes the next request, and a group's sequences
// end with it. Method: scripted connections; a listener that counts its calls.
#include "server/cluster/group_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "server/request/status_map.h"
#include "tests/server/scripted_group.h"

namespace apb::cluster {
namespace {

using server_test::EndOf;
using server_test::HelloOf;
using server_test::ScriptedConnection;
using server_test::TokenOf;
using testing::ElementsAre;
using testing::HasSubstr;

class CountingListener final : public SequenceListener {
 public:
  void OnToken(const v1::TokenEvent&) override { ++tokens; }
  void OnProgress(const v1::SequenceProgress&) override { ++progress; }
  void OnEnd(const v1::SequenceEnd&) override { ++ends; }
  void OnLost(const std::string&) override { ++losses; }
  std::atomic<int> tokens{0}, progress{0}, ends{0}, losses{0};
};

v1::Submit SubmitOf(int tokens) {
  v1::Submit submit;
  for (int i = 0; i < tokens; ++i) submit.add_tokens(i);
  return submit;
}

class GroupRegistryTest : public testing::Test {
 protected:
  v1::Hello Hello(const std::string& id, int64_t max_model_len = 100) {
    v1::Hello hello = HelloOf(id, max_model_len);
    hello.set_model_fingerprint("f");
    hello.set_token("secret");
    return hello;
  }
  std::shared_ptr<WorkerGroup> Connect(const std::string& id, int64_t max_model_len = 100) {
    connection_ = std::make_shared<ScriptedConnection>();
    return *registry_.Connect(Hello(id, max_model_len), connection_);
  }

  observability::Metrics metrics_{"model", "0"};
  GroupRegistry registry_{{.fingerprint = "f", .token = "secret"}, metrics_};
  std::shared_ptr<ScriptedConnection> connection_;
  std::shared_ptr<CountingListener> listener_ = std::make_shared<CountingListener>();
};

TEST_F(GroupRegistryTest, RefusesWhoDoesNotBelongHere) {
  struct Row {
    void (*spoil)(v1::Hello&);
    absl::StatusCode code;
    const char* says;
  };
  using Code = absl::StatusCode;
  for (const Row& row :
       {Row{[](v1::Hello& h) { h.set_token("guess"); }, Code::kPermissionDenied, "token"},
        Row{[](v1::Hello& h) { h.clear_token(); }, Code::kPermissionDenied, "token"},
        Row{[](v1::Hello& h) { h.set_model_fingerprint("x"); }, Code::kFailedPrecondition,
            "another model"},
        Row{[](v1::Hello& h) { h.set_ranks(0); }, Code::kInvalidArgument, "ranks"},
        Row{[](v1::Hello& h) { h.set_max_model_len(0); }, Code::kInvalidArgument,
            "max_model_len"}}) {
    v1::Hello hello = Hello("g");
    row.spoil(hello);
    const auto group = registry_.Connect(hello, std::make_shared<ScriptedConnection>());
    EXPECT_EQ(group.status().code(), row.code) << row.says;
    EXPECT_THAT(std::string(group.status().message()), HasSubstr(row.says));
  }
  EXPECT_FALSE(registry_.ready());
}

TEST_F(GroupRegistryTest, TheLeastLoadedGroupThatIsLongEnoughTakesTheNext) {
  EXPECT_EQ(registry_.Pick(1), nullptr);
  const auto shorter = Connect("short", 50);
  const auto longer = Connect("long", 100);
  ASSERT_TRUE(shorter->Submit(SubmitOf(10), listener_).ok());
  EXPECT_EQ(registry_.Pick(50), longer);
  ASSERT_TRUE(longer->Submit(SubmitOf(11), listener_).ok());
  EXPECT_EQ(registry_.Pick(50), shorter);
  EXPECT_EQ(registry_.Pick(51), longer) << "too long for the other";
  EXPECT_EQ(registry_.Pick(101), nullptr);
  registry_.OnMessage(*longer, EndOf(1, v1::END_REASON_LENGTH));
  EXPECT_EQ(registry_.Pick(50), longer);
  EXPECT_EQ(registry_.max_model_len(), 100);
}

TEST_F(GroupRegistryTest, AGroupThatLeavesTakesNothingNewAndEndsWhatItHas) {
  std::vector<bool> announced;
  registry_.SetReadinessListener([&](bool ready) { announced.push_back(ready); });
  const auto group = Connect("g");
  const uint64_t sequence = *group->Submit(SubmitOf(3), listener_);
  v1::FromWorker leaving;
  leaving.mutable_leaving();
  registry_.OnMessage(*group, leaving);
  EXPECT_EQ(registry_.Pick(1), nullptr);
  EXPECT_FALSE(registry_.ready());
  registry_.OnMessage(*group, TokenOf(sequence, 1));
  registry_.OnMessage(*group, EndOf(sequence, v1::END_REASON_LENGTH));
  EXPECT_EQ(listener_->tokens, 1);
  EXPECT_EQ(listener_->ends, 1);
  registry_.Disconnect(group, "closed");
  EXPECT_EQ(listener_->losses, 0);
  EXPECT_THAT(announced, ElementsAre(true, false));
}

TEST_F(GroupRegistryTest, AGroupThatConnectsAnewReplacesItsOldSelf) {
  const auto old = Connect("g");
  const auto old_connection = connection_;
  ASSERT_TRUE(old->Submit(SubmitOf(3), listener_).ok());
  const auto group = Connect("g");
  EXPECT_EQ(listener_->losses, 1);
  ASSERT_EQ(old_connection->closed().size(), 1U);
  EXPECT_EQ(old_connection->closed()[0].code(), absl::StatusCode::kAborted);
  registry_.Disconnect(old, "the stream broke");  // it comes late
  EXPECT_EQ(registry_.Pick(1), group);
  EXPECT_EQ(registry_.connections("g"), 2);
  EXPECT_EQ(listener_->losses, 1);
}

TEST_F(GroupRegistryTest, ALostGroupTellsItsListenersOnceAndTakesNothing) {
  const auto group = Connect("g");
  ASSERT_TRUE(group->Submit(SubmitOf(3), listener_).ok());
  registry_.Disconnect(group, "killed");
  registry_.Disconnect(group, "killed");
  EXPECT_EQ(listener_->losses, 1);
  const absl::Status refused = group->Submit(SubmitOf(3), listener_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(request::RetryAfterOf(refused), 2) << "the client may try again";
  EXPECT_EQ(group->load_tokens(), 0);
}

TEST_F(GroupRegistryTest, TheReasonOfTheAbsenceIsToldUntilAGroupConnects) {
  registry_.SetAbsenceReason("the local group could not start");
  EXPECT_EQ(registry_.absence(), "no worker group is ready: the local group could not start");
  const auto group = Connect("g");
  registry_.Disconnect(group, "killed");
  EXPECT_EQ(registry_.absence(), "no worker group is ready");
}

TEST_F(GroupRegistryTest, SubmissionsRaceWithTheLoss) {
  for (int i = 0; i < 200; ++i) {
    const auto group = Connect("g");
    auto listener = std::make_shared<CountingListener>();
    int taken = 0;
    std::thread client([&] {
      for (int k = 0; k < 20; ++k) taken += group->Submit(SubmitOf(1), listener).ok() ? 1 : 0;
    });
    registry_.Disconnect(group, "killed");
    client.join();
    ASSERT_EQ(listener->losses, taken) << "who was taken hears of the loss, nobody else does";
    ASSERT_EQ(group->sequence_count(), 0);
    ASSERT_EQ(group->load_tokens(), 0);
  }
}

TEST_F(GroupRegistryTest, StrategiesAreThoseOfReadyGroups) {
  const auto connect = [&](const std::string& id, std::initializer_list<const char*> strategies) {
    v1::Hello hello = Hello(id);
    hello.clear_strategies();
    for (const char* name : strategies) hello.add_strategies()->set_name(name);
    return *registry_.Connect(hello, std::make_shared<ScriptedConnection>());
  };
  EXPECT_THAT(registry_.StrategyNames(), testing::IsEmpty());
  const auto old_group = connect("a", {"full", "apb"}),
             new_group = connect("b", {"full", "gather_kv"});
  EXPECT_THAT(registry_.StrategyNames(), ElementsAre("auto", "full", "apb", "gather_kv"));
  registry_.Disconnect(old_group, "gone");
  EXPECT_THAT(registry_.StrategyNames(), ElementsAre("auto", "full", "gather_kv"));
  v1::FromWorker leaving;
  leaving.mutable_leaving();
  registry_.OnMessage(*new_group, leaving);
  EXPECT_THAT(registry_.StrategyNames(), testing::IsEmpty());
}

TEST_F(GroupRegistryTest, DrainIsToldToAll) {
  const auto group = Connect("g");
  registry_.DrainAll();
  ASSERT_EQ(connection_->sent().size(), 1U);
  EXPECT_TRUE(connection_->sent()[0].has_drain());
}

}  // namespace
}  // namespace apb::cluster
