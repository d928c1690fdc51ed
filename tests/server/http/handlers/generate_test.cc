// Goal: events become the right response, streamed or whole, and only so much may wait for a
// client. Method: events by hand; the frames are parsed again.
#include "server/http/handlers/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "server/http/stream_sink.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::Pair;

GenerationResponse Make(json more = json::object(), bool chat = false) {
  json body =
      chat ? json{{"messages", {{{"role", "user"}, {"content", "a"}}}}} : json{{"prompt", "a"}};
  body.update(more);
  return GenerationResponse(chat ? *ParseChat(body) : *ParseCompletion(body), "id", "demo", "1", 7);
}

request::TokenChunk Chunk(const std::string& text) {
  request::TokenChunk chunk;
  chunk.ids = {1};
  chunk.text = text;
  return chunk;
}

// The bodies of the frames; [DONE] becomes a string.
std::vector<json> FramesOf(const std::string& frames) {
  std::vector<json> bodies;
  const std::vector<std::string> parts = absl::StrSplit(frames, "\n\n", absl::SkipEmpty());
  for (const std::string& part : parts) {
    EXPECT_EQ(part.substr(0, 6), "data: ");
    const std::string body = part.substr(6);
    bodies.push_back(body == "[DONE]" ? json(body) : json::parse(body));
  }
  return bodies;
}

TEST(GenerationResponse, AStreamBeginsWhenTheRequestIsQueued) {
  GenerationResponse response = Make({{"stream", true}});
  const auto none = response.Take({});
  EXPECT_FALSE(none.begins_stream || none.over || none.whole.has_value());
  EXPECT_TRUE(response.Take({request::Queued{}}).begins_stream);
  const auto tokens = response.Take({Chunk("a"), Chunk("b")});
  EXPECT_FALSE(tokens.begins_stream);
  ASSERT_EQ(FramesOf(tokens.frames).size(), 2U);
  EXPECT_EQ(FramesOf(tokens.frames)[1]["choices"][0]["text"], "b");
  const auto end = response.Take({request::Completed{.reason = request::FinishReason::kLength}});
  EXPECT_TRUE(end.over);
  EXPECT_FALSE(end.whole.has_value());
  const auto frames = FramesOf(end.frames);
  ASSERT_EQ(frames.size(), 2U);
  EXPECT_EQ(frames[0]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(frames[0]["id"], "cmpl-id");
  EXPECT_EQ(frames[0]["created"], 7);
  EXPECT_EQ(frames[1], "[DONE]");
}

TEST(GenerationResponse, AllAtOnceIsTheSameStream) {
  GenerationResponse response =
      Make({{"stream", true}, {"stream_options", {{"include_usage", true}}}}, true);
  const auto out = response.Take({request::Queued{}, request::Progress{.total_tokens = 4},
                                  Chunk("a"), request::Completed{.prompt_tokens = 4}});
  EXPECT_TRUE(out.begins_stream);
  EXPECT_TRUE(out.over);
  const auto frames = FramesOf(out.frames);
  ASSERT_EQ(frames.size(), 5U);
  EXPECT_EQ(frames[0]["apb_progress"]["total_tokens"], 4);
  EXPECT_EQ(frames[1]["choices"][0]["delta"], json({{"role", "assistant"}, {"content", "a"}}));
  EXPECT_EQ(frames[2]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(frames[3]["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(frames[4], "[DONE]");
}

TEST(GenerationResponse, AnErrorBeforeTheHeadHasAStatusOfItsOwn) {
  const absl::Status status = request::WithRetryAfter(absl::UnavailableError("gone"), 2);
  GenerationResponse response = Make({{"stream", true}});
  const auto out = response.Take({request::Failed{status}});
  EXPECT_FALSE(out.begins_stream);
  ASSERT_TRUE(out.whole.has_value());
  EXPECT_EQ(out.whole->status, 503);
  EXPECT_THAT(out.whole->headers, ElementsAre(Pair("Retry-After", "2")));
}

TEST(GenerationResponse, AnErrorBehindTheHeadIsAFrame) {
  GenerationResponse response = Make({{"stream", true}});
  response.Take({request::Queued{}});
  const auto out = response.Take({Chunk("a"), request::Failed{absl::AbortedError("gone")}});
  EXPECT_TRUE(out.over);
  EXPECT_FALSE(out.whole.has_value());
  const auto frames = FramesOf(out.frames);
  ASSERT_EQ(frames.size(), 3U);
  EXPECT_EQ(frames[1]["error"]["message"], "gone");
  EXPECT_EQ(frames[2], "[DONE]");
}

TEST(GenerationResponse, WithoutStreamThereIsOneAnswerInTheEnd) {
  GenerationResponse response = Make(json::object(), true);
  auto out = response.Take({request::Queued{}, request::Progress{}, Chunk("a"), Chunk("b")});
  EXPECT_FALSE(out.begins_stream || out.over || out.whole.has_value());
  EXPECT_EQ(out.frames, "");
  out = response.Take({request::Completed{.stop_string = "x", .queue_seconds = 0.5}});
  ASSERT_TRUE(out.whole.has_value());
  EXPECT_EQ(out.whole->status, 200);
  const json body = json::parse(out.whole->body);
  EXPECT_EQ(body["id"], "chatcmpl-id");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "ab");
  EXPECT_EQ(body["choices"][0]["stop_reason"], "x");
  EXPECT_THAT(
      out.whole->headers,
      ElementsAre(Pair("Server-Timing", "queue;dur=500.0, prefill;dur=0.0, decode;dur=0.0")));
}

TEST(GenerationResponse, AContextIsItsCard) {
  GenerationResponse response = Make();
  const auto out =
      response.Take({request::Queued{}, request::ContextInfo{.id = "ctx-1", .prompt_tokens = 4}});
  ASSERT_TRUE(out.whole.has_value());
  const json body = json::parse(out.whole->body);
  EXPECT_EQ(body["id"], "ctx-1");
  EXPECT_EQ(body["status"], "ready");
  EXPECT_EQ(body["usage"]["total_tokens"], 4);
}

TEST(StreamSink, WakesOncePerBatchAndCutsOffWhoIsTooFarBehind) {
  int wakes = 0;
  StreamSink sink(1000, [&] { ++wakes; });
  EXPECT_TRUE(sink.OnEvent(request::Queued{}));
  EXPECT_TRUE(sink.OnEvent(Chunk("a")));
  EXPECT_EQ(wakes, 1);
  EXPECT_EQ(sink.Take().size(), 2U);
  EXPECT_TRUE(sink.Take().empty());
  EXPECT_TRUE(sink.OnEvent(Chunk(std::string(400, 'a'))));
  EXPECT_EQ(wakes, 2);
  EXPECT_FALSE(sink.OnEvent(Chunk(std::string(400, 'a'))));
  const auto events = sink.Take();
  ASSERT_EQ(events.size(), 2U);
  ASSERT_TRUE(std::holds_alternative<request::Failed>(events[1]));
  EXPECT_EQ(std::get<request::Failed>(events[1]).status.code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace apb::http_api
