// Goal: messages become the requests that they mean, input that a canonical request cannot express
// is an error, and every event becomes the message of its kind. Method: messages in text format;
// events by hand.
#include "server/grpc/request_codec.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "server/request/status_map.h"

namespace apb::grpc_api {
namespace {

namespace pb = inference::v1;
using testing::ElementsAre;

template <typename Message>
absl::StatusOr<request::CanonicalRequest> Read(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return FromMessage(message);
}

TEST(RequestCodec, TheFieldThatIsWrongIsNamed) {
  struct Row {
    const char* text;
    const char* field;
  };
  for (const Row& row : {Row{"", "input"}, Row{"text: 'a' request_id: 'a b'", "request_id"}}) {
    for (const absl::Status& status : {Read<pb::GenerateRequest>(row.text).status(),
                                       Read<pb::CreateContextRequest>(row.text).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.text;
      EXPECT_EQ(request::FieldOf(status), row.field) << row.text;
    }
  }
  EXPECT_EQ(request::FieldOf(Read<pb::TokenizeRequest>("").status()), "input");
}

TEST(RequestCodec, InputsAndContexts) {
  const auto text = Read<pb::GenerateRequest>("text: 'a' model: 'm' context: 'c'");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(std::get<request::TextInput>(text->input).text, "a");
  EXPECT_EQ(text->api, request::Api::kCompletion);
  EXPECT_EQ(text->model, "m");
  EXPECT_EQ(text->context, "c");
  EXPECT_FALSE(text->create_context || text->report_progress);
  const auto tokens = Read<pb::GenerateRequest>("tokens { ids: [1, 2] } include_progress: true");
  EXPECT_THAT(std::get<request::TokenInput>(tokens->input).ids, ElementsAre(1, 2));
  EXPECT_TRUE(tokens->report_progress);
  EXPECT_FALSE(tokens->context.has_value());
  const auto chat = Read<pb::GenerateRequest>("chat { messages { role: 'user' content: 'a' } }");
  EXPECT_EQ(chat->api, request::Api::kChat);
  EXPECT_EQ(std::get<request::ChatInput>(chat->input).messages[0].content, "a");
  const auto context = Read<pb::CreateContextRequest>("text: 'a' ttl_seconds: 5");
  EXPECT_TRUE(context->create_context);
  EXPECT_EQ(context->ttl_seconds, 5);
}

TEST(RequestCodec, RequestsWithoutAnIdGetOne) {
  EXPECT_EQ(Read<pb::GenerateRequest>("text: 'a' request_id: 'mine'")->id, "mine");
  const std::string one = Read<pb::GenerateRequest>("text: 'a'")->id;
  EXPECT_EQ(one.size(), 32U);
  EXPECT_NE(one, Read<pb::GenerateRequest>("text: 'a'")->id);
}

TEST(RequestCodec, EveryEventIsAMessageOfItsKind) {
  const pb::GenerateResponse queued =
      ToMessage(request::Queued{.position = 3, .prompt_tokens = 4}, "id");
  EXPECT_EQ(queued.queued().request_id(), "id");
  EXPECT_EQ(queued.queued().position(), 3);
  EXPECT_EQ(queued.queued().prompt_tokens(), 4);
  EXPECT_EQ(ToMessage(request::Progress{.processed_tokens = 5}, "id").progress().processed_tokens(),
            5);
  request::TokenChunk chunk{.ids = {7}, .text = "a"};
  chunk.logprobs.push_back({.chosen = {.id = 7, .bytes = "a", .logprob = -1},
                            .top = {{.id = 8, .bytes = "b", .logprob = -0.5}}});
  const pb::GenerateResponse token = ToMessage(chunk, "id");
  EXPECT_EQ(token.token().ids(0), 7);
  EXPECT_EQ(token.token().text(), "a");
  EXPECT_EQ(token.token().logprobs(0).chosen().id(), 7);
  EXPECT_EQ(token.token().logprobs(0).top(0).token(), "b");
}

TEST(RequestCodec, TheEndTellsWhatStoppedIt) {
  const auto end = [](request::Completed completed) {
    return ToMessage(completed, "").completed();
  };
  EXPECT_EQ(end({.stop_string = "x", .stop_token = 5}).stop_reason(), "x");
  EXPECT_EQ(end({.stop_token = 5}).stop_reason(), "5");
  EXPECT_EQ(end({}).stop_reason(), "");
  EXPECT_EQ(end({.reason = request::FinishReason::kLength}).finish_reason(),
            pb::FINISH_REASON_LENGTH);
  EXPECT_EQ(end({.prompt_tokens = 4, .completion_tokens = 2}).usage().completion_tokens(), 2);
  EXPECT_EQ(end({.strategy = "ring_kv"}).strategy(), "ring_kv");
  EXPECT_EQ(end({}).strategy(), "");
}

}  // namespace
}  // namespace apb::grpc_api
