// Goal: a client hears the right events of a request in the right order. However a request ends (by
// the group, the client, a slow reader, the group's loss, the server's end), it ends once, tells
// the group, and leaves no account open. Method: a frontend with the demo model's tokenizer and a
// scripted group, whose leader the tests play.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/cluster/group_registry.h"
#include "server/frontend/frontend.h"
#include "server/http/openai_codec.h"
#include "server/request/status_map.h"
#include "tests/server/scripted_group.h"

namespace apb::frontend {
namespace {

using cluster::v1::END_REASON_CANCELLED;
using cluster::v1::END_REASON_FAILED;
using cluster::v1::END_REASON_LENGTH;
using cluster::v1::END_REASON_REJECTED;
using cluster::v1::END_REASON_STOP_TOKEN;
using server_test::EndOf;
using server_test::ProgressOf;
using server_test::RecordingSink;
using server_test::ScriptedConnection;
using server_test::TokenOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int32_t kToken = 300;  // any word of the demo model

const PromptProcessor& Prompts() {
  static const PromptProcessor* prompts =
      PromptProcessor::Load(APB_SOURCE_DIR "/tests/reference_model/checkpoint")->release();
  return *prompts;
}

class ActiveRequestTest : public testing::Test {
 protected:
  ActiveRequestTest() { Connect(); }

  void Connect() {
    connection_ = std::make_shared<ScriptedConnection>();
    cluster::v1::Hello hello = server_test::HelloOf("g");
    hello.set_model_fingerprint(Prompts().fingerprint());
    group_ = *registry_.Connect(hello, connection_);
  }

  // A request as the HTTP side reads it; `more` is added to the fields of the body.
  static request::CanonicalRequest Request(nlohmann::json more = {}) {
    nlohmann::json body = {{"prompt", {10, 11, 12, 13}}, {"return_progress", true}};
    if (!more.is_null()) body.update(more);
    return http_api::ParseCompletion(body)->request;
  }
  static request::CanonicalRequest NewContext() {
    return http_api::ParseNewContext({{"prompt", {10, 11, 12, 13}}})->request;
  }

  // Starts the request, waits until the group has it, and returns its sequence.
  uint64_t Start(request::CanonicalRequest request, size_t client_takes = SIZE_MAX) {
    sink_ = std::make_shared<RecordingSink>(client_takes);
    const auto active = frontend_.Start(std::move(request), sink_);
    EXPECT_TRUE(active.ok()) << active.status();
    active_ = active.ok() ? *active : nullptr;
    return connection_->AwaitSequence();
  }
  void Say(const cluster::v1::FromWorker& message) { registry_.OnMessage(*group_, message); }

  void ExpectNothingLeft() {
    EXPECT_EQ(frontend_.in_flight(), 0U);
    EXPECT_EQ(frontend_.load().waiting(), 0);
    EXPECT_EQ(frontend_.load().running(), 0);
    EXPECT_EQ(group_->sequence_count(), 0);
    EXPECT_EQ(group_->load_tokens(), 0);
  }

  observability::Metrics metrics_{"model", "0"};
  cluster::GroupRegistry registry_{{.fingerprint = Prompts().fingerprint()}, metrics_};
  Frontend frontend_{{.model = "demo", .contexts = {.max_contexts = 1}, .text_threads = 1},
                     Prompts(),
                     registry_,
                     metrics_};
  std::shared_ptr<ScriptedConnection> connection_;
  std::shared_ptr<cluster::WorkerGroup> group_;
  std::shared_ptr<RecordingSink> sink_;
  std::shared_ptr<ActiveRequest> active_;
};

TEST_F(ActiveRequestTest, EventsComeInOrderAndEndOnce) {
  const uint64_t sequence = Start(Request());
  EXPECT_EQ(frontend_.load().waiting(), 1);
  Say(ProgressOf(sequence, 2));
  EXPECT_EQ(frontend_.load().waiting(), 0);
  EXPECT_EQ(frontend_.load().running(), 1);
  Say(ProgressOf(sequence, 4));
  Say(TokenOf(sequence, kToken));
  Say(TokenOf(sequence, kToken));
  Say(EndOf(sequence, END_REASON_LENGTH));
  // These must have no effect any more.
  Say(TokenOf(sequence, kToken));
  Say(EndOf(sequence, END_REASON_LENGTH));
  active_->Cancel();
  active_->Fail(absl::AbortedError("late"));
  // The optional T is text that was held back.
  EXPECT_THAT(sink_->letters(), testing::MatchesRegex("QPPTTT?C"));
  const auto completed = std::get<request::Completed>(sink_->events().back());
  EXPECT_EQ(completed.reason, request::FinishReason::kLength);
  EXPECT_EQ(completed.prompt_tokens, 4);
  EXPECT_EQ(completed.completion_tokens, 2);
  EXPECT_EQ(completed.strategy, "full");
  EXPECT_THAT(connection_->cancels(), IsEmpty());
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, WhoDoesNotAskForProgressHearsOfNone) {
  const uint64_t sequence = Start(Request({{"return_progress", false}}));
  Say(ProgressOf(sequence));
  Say(EndOf(sequence, END_REASON_STOP_TOKEN));
  EXPECT_EQ(sink_->letters(), "QC");
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, TheEndOfTheWorkerIsAStatusOfTheClient) {
  struct Row {
    cluster::v1::EndReason reason;
    absl::StatusCode told;
    absl::StatusCode code;
    int retry_after;
  };
  using Code = absl::StatusCode;
  for (const Row& row :
       {Row{END_REASON_REJECTED, Code::kInvalidArgument, Code::kInvalidArgument, 0},
        Row{END_REASON_REJECTED, Code::kNotFound, Code::kNotFound, 0},
        Row{END_REASON_FAILED, Code::kInternal, Code::kInternal, 0},
        Row{END_REASON_FAILED, Code::kOk, Code::kInternal, 0},
        Row{END_REASON_FAILED, Code::kResourceExhausted, Code::kResourceExhausted, 2},
        Row{END_REASON_CANCELLED, Code::kOk, Code::kUnavailable, 2}}) {
    SCOPED_TRACE(static_cast<int>(row.told));
    // A new connection: the next sequence is its first.
    Connect();
    const uint64_t sequence = Start(Request());
    Say(EndOf(sequence, row.reason, row.told));
    EXPECT_EQ(sink_->letters(), "QF");
    EXPECT_EQ(sink_->failure().code(), row.code);
    EXPECT_EQ(request::RetryAfterOf(sink_->failure()), row.retry_after);
    EXPECT_THAT(connection_->cancels(), IsEmpty());
    ExpectNothingLeft();
  }
}

TEST_F(ActiveRequestTest, ASlowReaderIsCutOffAtAnyEvent) {
  // The events are Queued, Progress, two chunks and the end; the client takes the first `takes` of
  // them.
  for (size_t takes = 0; takes < 5; ++takes) {
    SCOPED_TRACE(takes);
    Connect();
    sink_ = std::make_shared<RecordingSink>(takes);
    const auto active = frontend_.Start(Request(), sink_);
    ASSERT_TRUE(active.ok());
    if (takes == 0) {
      EXPECT_TRUE(frontend_.AwaitIdle(absl::Now() + absl::Minutes(2)));
      EXPECT_THAT(connection_->submits(), IsEmpty()) << "nobody would hear of it";
    } else {
      const uint64_t sequence = connection_->AwaitSequence();
      Say(ProgressOf(sequence));
      Say(TokenOf(sequence, kToken));
      Say(TokenOf(sequence, kToken));
      Say(EndOf(sequence, END_REASON_LENGTH));
      EXPECT_EQ(connection_->cancels().size(), takes < 4 ? 1U : 0U);
    }
    EXPECT_EQ(sink_->events().size(), takes + 1) << "nothing follows: " << sink_->letters();
    ExpectNothingLeft();
  }
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("outcome=\"cancelled\",strategy=\"\"} 5"));
}

TEST_F(ActiveRequestTest, CancelTellsTheGroupAndNothingFollows) {
  const uint64_t sequence = Start(Request());
  Say(TokenOf(sequence, kToken));
  active_->Cancel();
  active_->Cancel();
  Say(TokenOf(sequence, kToken));
  Say(EndOf(sequence, END_REASON_LENGTH));
  EXPECT_EQ(sink_->letters(), "QT");
  EXPECT_THAT(connection_->cancels(), ElementsAre(sequence));
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, AStopStringEndsTheSequenceAtTheGroup) {
  // The stop string is the text of two tokens.
  const std::string text = Prompts().tokenizer().TokenBytes(kToken);
  ASSERT_FALSE(text.empty());
  const auto clean = Prompts().tokenizer().Decode(std::vector<int32_t>{kToken, kToken}, true);
  ASSERT_TRUE(clean.ok());
  const uint64_t sequence = Start(Request({{"stop", *clean}}));
  Say(TokenOf(sequence, kToken));
  Say(TokenOf(sequence, kToken));
  Say(TokenOf(sequence, kToken));
  ASSERT_TRUE(sink_->AwaitEnd());
  EXPECT_EQ(sink_->letters(), "QTTC");
  const auto completed = std::get<request::Completed>(sink_->events().back());
  EXPECT_EQ(completed.stop_string, *clean);
  EXPECT_EQ(completed.completion_tokens, 2);
  EXPECT_THAT(connection_->cancels(), ElementsAre(sequence));
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, ALostGroupFailsItsRequestsSoThatTheyMayBeTriedAgain) {
  const uint64_t sequence = Start(Request());
  Say(ProgressOf(sequence));
  registry_.Disconnect(group_, "killed");
  EXPECT_EQ(sink_->letters(), "QPF");
  EXPECT_EQ(sink_->failure().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(request::RetryAfterOf(sink_->failure()), 2);
  ExpectNothingLeft();

  Connect();
  const uint64_t second = Start(Request());
  Say(TokenOf(second, kToken));
  registry_.Disconnect(group_, "killed");
  EXPECT_EQ(sink_->letters(), "QTF");
  EXPECT_EQ(sink_->failure().code(), absl::StatusCode::kAborted) << "part of the answer is out";
  ExpectNothingLeft();

  const auto refused = frontend_.Start(Request(), std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable) << "no group is left";
}

TEST_F(ActiveRequestTest, DrainingRefusesNewRequestsAndLetsOldOnesEnd) {
  const uint64_t sequence = Start(Request());
  frontend_.BeginDrain();
  auto unheard = std::make_shared<RecordingSink>();
  const auto refused = frontend_.Start(Request(), unheard);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(request::RetryAfterOf(refused.status()), 5);
  EXPECT_EQ(unheard->letters(), "");
  EXPECT_FALSE(frontend_.AwaitIdle(absl::Now()));
  Say(TokenOf(sequence, kToken));
  Say(EndOf(sequence, END_REASON_LENGTH));
  EXPECT_TRUE(frontend_.AwaitIdle(absl::Now()));
  EXPECT_TRUE(sink_->AwaitEnd());
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, WhatOutlivesTheDrainIsFailed) {
  const uint64_t sequence = Start(Request());
  frontend_.BeginDrain();
  frontend_.FailAll(absl::AbortedError("the server is shutting down"));
  EXPECT_EQ(sink_->letters(), "QF");
  EXPECT_THAT(connection_->cancels(), ElementsAre(sequence));
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, APromptThatIsTooLongIsRefusedBehindTheTextWork) {
  sink_ = std::make_shared<RecordingSink>();
  const std::vector<int32_t> prompt(4096, 10);  // leaves no room for a completion
  ASSERT_TRUE(frontend_.Start(Request({{"prompt", prompt}}), sink_).ok());
  ASSERT_TRUE(sink_->AwaitEnd());
  EXPECT_EQ(sink_->letters(), "F");
  EXPECT_EQ(request::ErrorCodeOf(sink_->failure()), "context_length_exceeded");
  EXPECT_TRUE(frontend_.AwaitIdle(absl::Now() + absl::Minutes(2)));
  EXPECT_THAT(connection_->submits(), IsEmpty());
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("apb_requests_rejected_total{model=\"model\""));
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("reason=\"too_long\"} 1"));
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, AContextKeepsItsPlaceOnlyWhenItIsMade) {
  const request::CanonicalRequest create = NewContext();
  const uint64_t sequence = Start(create);
  EXPECT_EQ(frontend_.Start(create, std::make_shared<RecordingSink>()).status().code(),
            absl::StatusCode::kResourceExhausted)
      << "there is room for one";
  Say(EndOf(sequence, END_REASON_FAILED, absl::StatusCode::kInternal));
  EXPECT_EQ(sink_->letters(), "QF");
  ExpectNothingLeft();

  Connect();
  const uint64_t second = Start(create);
  active_->Cancel();
  EXPECT_THAT(connection_->cancels(), ElementsAre(second));

  Connect();
  const uint64_t third = Start(create);
  EXPECT_TRUE(connection_->submits()[0].keep());
  Say(EndOf(third, END_REASON_LENGTH));
  EXPECT_EQ(sink_->letters(), "QX");
  EXPECT_THAT(connection_->cancels(), IsEmpty()) << "the group keeps it";
  EXPECT_EQ(frontend_.contexts().List("").size(), 1U);
  ExpectNothingLeft();
}

TEST_F(ActiveRequestTest, CancelRacesWithEveryPhase) {
  for (int i = 0; i < 400; ++i) {
    Connect();
    auto sink = std::make_shared<RecordingSink>();
    const bool creates = i % 4 == 0, ends = i % 2 == 0, is_lost = i % 5 == 0;
    auto active = frontend_.Start(creates ? NewContext() : Request(), sink);
    ASSERT_TRUE(active.ok());
    const bool is_early = i % 3 == 0;  // while the text work may be running
    const uint64_t sequence = is_early ? 1 : connection_->AwaitSequence();
    std::thread client([&, i] {
      for (int spin = 0; spin < i % 16; ++spin) std::this_thread::yield();
      (*active)->Cancel();
    });
    Say(ProgressOf(sequence));
    Say(TokenOf(sequence, kToken));
    if (ends) Say(EndOf(sequence, END_REASON_LENGTH));
    if (is_lost) registry_.Disconnect(group_, "killed");
    client.join();
    ASSERT_TRUE(frontend_.AwaitIdle(absl::Now() + absl::Minutes(2)));
    const std::string letters = sink->letters();
    const size_t end = letters.find_first_of("CXF");
    ASSERT_TRUE(end == std::string::npos || end + 1 == letters.size()) << letters;
    const bool ended = end != std::string::npos;
    const bool submitted = !connection_->submits().empty();
    // The group is told once about a sequence that it still computes or keeps, and never about one
    // that it has ended.
    const size_t told = connection_->cancels().size();
    if (ended) {
      ASSERT_EQ(told, 0U) << letters;
    }
    if (submitted && !ended && !is_lost && (creates || !ends)) {
      ASSERT_EQ(told, 1U) << letters;
    }
    ASSERT_LE(told, 1U);
    for (const auto& context : frontend_.contexts().List("")) {
      ASSERT_TRUE(frontend_.contexts().Delete("", context.id).ok());
    }
    ExpectNothingLeft();
  }
}

}  // namespace
}  // namespace apb::frontend
