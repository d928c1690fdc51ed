// Goal: bodies of the OpenAI API are read as clients mean them, and an error names the wrong field.
// Method: tables of JSON. admission_test and both_apis_test check limits and defaults.
#include "server/http/openai_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;
using testing::ElementsAre;

enum class Body { kCompletion, kChat, kContext, kTokenize, kDetokenize };

absl::Status StatusOf(Body kind, const json& body) {
  switch (kind) {
    case Body::kCompletion:
      return ParseCompletion(body).status();
    case Body::kChat:
      return ParseChat(body).status();
    case Body::kContext:
      return ParseNewContext(body).status();
    case Body::kTokenize:
      return ParseTokenize(body).status();
    default:
      return ParseDetokenize(body).status();
  }
}

TEST(OpenAiCodec, TheFieldThatIsWrongIsNamed) {
  struct Row {
    Body kind;
    const char* body;
    const char* field;
  };
  constexpr Row kRows[] = {
      {Body::kCompletion, R"({})", "prompt"},
      {Body::kCompletion, R"({"prompt": null})", "prompt"},
      {Body::kCompletion, R"({"prompt": 1})", "prompt"},
      {Body::kCompletion, R"({"prompt": {}})", "prompt"},
      {Body::kCompletion, R"({"prompt": ["a", "b"]})", "prompt"},
      {Body::kCompletion, R"({"prompt": [[1, 2], [3]]})", "prompt"},
      {Body::kCompletion, R"({"prompt": [1, "a"]})", "prompt"},
      {Body::kCompletion, R"({"prompt": [1.5]})", "prompt"},
      {Body::kCompletion, R"({"prompt": [0.5]})", "prompt"},
      {Body::kCompletion, R"({"prompt": [4294967296]})", "prompt"},
      {Body::kCompletion, R"({"prompt": "a", "add_special_tokens": 1})", "add_special_tokens"},
      {Body::kCompletion, R"({"prompt": "a", "model": 1})", "model"},
      {Body::kCompletion, R"({"prompt": "a", "context": 1})", "context"},
      {Body::kCompletion, R"({"prompt": "a", "max_tokens": "1"})", "max_tokens"},
      {Body::kCompletion, R"({"prompt": "a", "max_tokens": 1.5})", "max_tokens"},
      {Body::kCompletion, R"({"prompt": "a", "temperature": "1"})", "temperature"},
      {Body::kCompletion, R"({"prompt": "a", "top_p": true})", "top_p"},
      {Body::kCompletion, R"({"prompt": "a", "top_k": 1.5})", "top_k"},
      {Body::kCompletion, R"({"prompt": "a", "min_p": []})", "min_p"},
      {Body::kCompletion, R"({"prompt": "a", "seed": "x"})", "seed"},
      {Body::kCompletion, R"({"prompt": "a", "presence_penalty": "x"})", "presence_penalty"},
      {Body::kCompletion, R"({"prompt": "a", "frequency_penalty": "x"})", "frequency_penalty"},
      {Body::kCompletion, R"({"prompt": "a", "repetition_penalty": "x"})", "repetition_penalty"},
      {Body::kCompletion, R"({"prompt": "a", "min_tokens": "x"})", "min_tokens"},
      {Body::kCompletion, R"({"prompt": "a", "stop": 1})", "stop"},
      {Body::kCompletion, R"({"prompt": "a", "stop": ["a", 1]})", "stop"},
      {Body::kCompletion, R"({"prompt": "a", "stop_token_ids": 1})", "stop_token_ids"},
      {Body::kCompletion, R"({"prompt": "a", "stop_token_ids": ["1"]})", "stop_token_ids"},
      {Body::kCompletion, R"({"prompt": "a", "ignore_eos": 1})", "ignore_eos"},
      {Body::kCompletion, R"({"prompt": "a", "skip_special_tokens": 0})", "skip_special_tokens"},
      {Body::kCompletion, R"({"prompt": "a", "logprobs": "x"})", "logprobs"},
      {Body::kCompletion, R"({"prompt": "a", "stream": 1})", "stream"},
      {Body::kCompletion, R"({"prompt": "a", "return_progress": 1})", "return_progress"},
      {Body::kCompletion, R"({"prompt": "a", "stream": true, "stream_options": 1})",
       "stream_options"},
      {Body::kCompletion, R"({"prompt": "a", "stream_options": {}})", "stream_options"},
      {Body::kCompletion,
       R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}})",
       "stream_options.include_usage"},
      {Body::kCompletion, R"({"prompt": "a", "apb": 1})", "apb"},
      {Body::kCompletion, R"({"prompt": "a", "apb": {"strategy": 1}})", "apb.strategy"},
      {Body::kCompletion, R"({"prompt": "a", "apb": {"query": 1}})", "apb.query"},
      {Body::kCompletion, R"({"prompt": "a", "apb": {"hosts": "2"}})", "apb.hosts"},
      {Body::kCompletion, R"({"prompt": "a", "apb": {"exact": 1}})", "apb.exact"},
      {Body::kCompletion, R"({"prompt": "a", "apb": {"balanced": 1}})", "apb.balanced"},
      {Body::kChat, R"({})", "messages"},
      {Body::kChat, R"({"messages": "a"})", "messages"},
      {Body::kChat, R"({"messages": ["a"]})", "messages[0]"},
      {Body::kChat, R"({"messages": [{"role": 1, "content": "a"}]})", "messages[0].role"},
      {Body::kChat, R"({"messages": [{"role": "user"}]})", "messages[0].content"},
      {Body::kChat, R"({"messages": [{"role": "user", "content": 1}]})", "messages[0].content"},
      {Body::kChat, R"({"messages": [{"role": "user", "content": ["a"]}]})",
       "messages[0].content[0]"},
      {Body::kChat,
       R"({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}]})",
       "messages[0].content[0].type"},
      {Body::kChat, R"({"messages": [{"role": "user", "content": [{"text": 1}]}]})",
       "messages[0].content[0].text"},
      {Body::kChat,
       R"({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]})",
       "messages[0].tool_calls"},
      {Body::kChat, R"({"messages": [], "top_logprobs": 2})", "top_logprobs"},
      {Body::kChat, R"({"messages": [], "logprobs": 2})", "logprobs"},
      {Body::kChat, R"({"messages": [], "max_tokens": 1, "max_completion_tokens": 2})",
       "max_completion_tokens"},
      {Body::kChat, R"({"messages": [], "chat_template_kwargs": 1})", "chat_template_kwargs"},
      {Body::kChat, R"({"messages": [], "add_generation_prompt": 1})", "add_generation_prompt"},
      {Body::kContext, R"({"messages": [], "prompt": "a"})", "prompt"},
      {Body::kContext, R"({"prompt": "a", "stream": true})", "stream"},
      {Body::kContext, R"({"prompt": "a", "context": "ctx-1"})", "context"},
      {Body::kContext, R"({"prompt": "a", "ttl_seconds": "1"})", "ttl_seconds"},
      {Body::kTokenize, R"({})", "prompt"},
      {Body::kDetokenize, R"({})", "tokens"},
      {Body::kDetokenize, R"({"tokens": "a"})", "tokens"},
      {Body::kDetokenize, R"({"tokens": [0.5]})", "tokens"},
  };
  for (const Row& row : kRows) {
    const absl::Status status = StatusOf(row.kind, json::parse(row.body));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.body;
    EXPECT_EQ(request::FieldOf(status), row.field) << row.body;
  }
}

TEST(OpenAiCodec, WhatIsNotSupportedIsRefusedUnlessItAsksForNothing) {
  struct Row {
    const char* field;
    const char* asks;
    const char* harmless;
  };
  for (const Row& row :
       {Row{"n", "2", "1"}, Row{"best_of", "2", "1"}, Row{"echo", "true", "false"},
        Row{"suffix", R"("a")", R"("")"}, Row{"logit_bias", R"({"1": 2})", "{}"},
        Row{"tools", "[1]", "[]"}, Row{"tool_choice", R"("required")", R"("auto")"},
        Row{"response_format", R"({"type": "json_object"})", R"({"type": "text"})"},
        Row{"use_beam_search", "true", "null"}, Row{"length_penalty", "2", "1"}}) {
    const auto parse = [&](const char* value) {
      return ParseCompletion({{"prompt", "a"}, {row.field, json::parse(value)}}).status();
    };
    EXPECT_TRUE(parse(row.harmless).ok()) << row.field;
    EXPECT_EQ(request::FieldOf(parse(row.asks)), row.field);
    EXPECT_EQ(request::ErrorCodeOf(parse(row.asks)), "unsupported_parameter") << row.field;
  }
  EXPECT_TRUE(ParseCompletion({{"prompt", "a"}, {"no_such_field", 1}}).ok());
}

TEST(OpenAiCodec, PromptsHaveFourForms) {
  const auto input = [](const char* prompt) {
    return ParseCompletion({{"prompt", json::parse(prompt)}})->request.input;
  };
  EXPECT_EQ(std::get<request::TextInput>(input(R"("a")")).text, "a");
  EXPECT_EQ(std::get<request::TextInput>(input(R"(["a"])")).text, "a");
  EXPECT_THAT(std::get<request::TokenInput>(input("[1, 2.0]")).ids, ElementsAre(1, 2));
  EXPECT_THAT(std::get<request::TokenInput>(input("[[1, 2]]")).ids, ElementsAre(1, 2));
}

TEST(OpenAiCodec, ContentsOfMessagesMayComeInParts) {
  const auto generation = ParseChat(json::parse(R"({"messages": [
      {"role": "system", "content": "s"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]})"));
  ASSERT_TRUE(generation.ok()) << generation.status();
  const auto& chat = std::get<request::ChatInput>(generation->request.input);
  ASSERT_EQ(chat.messages.size(), 2U);
  EXPECT_EQ(chat.messages[1].role, "user");
  EXPECT_EQ(chat.messages[1].content, "ab");
  EXPECT_TRUE(chat.add_generation_prompt);
}

TEST(OpenAiCodec, OptionsOfStreams) {
  const auto generation = ParseCompletion(json::parse(
      R"({"prompt": "a", "stream": true,
          "stream_options": {"include_usage": true, "include_progress": true}})"));
  ASSERT_TRUE(generation.ok()) << generation.status();
  EXPECT_TRUE(generation->stream && generation->include_usage);
  EXPECT_TRUE(generation->request.report_progress);
  EXPECT_FALSE(ParseCompletion({{"prompt", "a"}})->stream);
}

TEST(OpenAiCodec, ANewContextTakesEitherInput) {
  const auto of = [](const char* body) { return *ParseNewContext(json::parse(body)); };
  EXPECT_TRUE(of(R"({"prompt": "a"})").request.create_context);
  EXPECT_EQ(of(R"({"prompt": "a"})").request.api, request::Api::kCompletion);
  EXPECT_EQ(of(R"({"messages": []})").request.api, request::Api::kChat);
  EXPECT_EQ(of(R"({"prompt": "a", "ttl_seconds": 5})").request.ttl_seconds, 5);
}

}  // namespace
}  // namespace apb::http_api
