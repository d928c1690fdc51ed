// Goal: every limit of a request is tried at, below and above its value, and the error names the
// field. Method: tables of JSON bodies as HTTP clients send them.
#include "server/request/admission.h"

#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/http/openai_codec.h"
#include "server/request/status_map.h"

namespace apb::request {
namespace {

using nlohmann::json;

constexpr int kVocabulary = 100;

Limits TestLimits() {
  return {.model = "demo",
          .max_model_len = 50,
          .max_token_bytes = 4,
          .max_input_bytes = 220,
          .vocab_size = kVocabulary,
          .max_context_ttl_seconds = 60,
          .strategies = {{"auto", true, true},
                         {"full", true, false},
                         {"apb", false, true},
                         {"star", false, false},
                         {"ring_kv", true, false}}};
}

// The field that the error names; "" without an error.
std::string FieldOfOutcome(const absl::StatusOr<http_api::Generation>& generation) {
  absl::Status status = generation.status();
  if (status.ok()) status = CheckRequest(generation->request, TestLimits());
  EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
  return FieldOf(status);
}
std::string WrongFieldOf(json more) {
  json body = {{"prompt", "text"}};
  body.update(more);
  return FieldOfOutcome(http_api::ParseCompletion(body));
}

TEST(Admission, NumbersHaveALowestAndAHighestValue) {
  struct Row {
    const char* field;
    json lowest, below, highest, above;
  };
  const int64_t most = 1 << 30;
  for (const Row& row :
       {Row{"max_tokens", 1, 0, most, most + 1}, Row{"temperature", 0, -1e-9, 2, 2 + 1e-9},
        Row{"top_p", 1e-9, 0, 1, 1 + 1e-9}, Row{"top_k", -1, -2, most, most + 1},
        Row{"min_p", 0, -1e-9, 1, 1 + 1e-9}, Row{"presence_penalty", -2, -2 - 1e-9, 2, 2 + 1e-9},
        Row{"frequency_penalty", -2, -2 - 1e-9, 2, 2 + 1e-9},
        Row{"repetition_penalty", 0.01, 0.01 - 1e-9, 100, 100 + 1e-9},
        Row{"logprobs", 0, -1, 20, 21}, Row{"min_tokens", 0, -1, most, most + 1}}) {
    SCOPED_TRACE(row.field);
    EXPECT_EQ(WrongFieldOf({{row.field, row.lowest}}), "");
    EXPECT_EQ(WrongFieldOf({{row.field, row.highest}}), "");
    EXPECT_EQ(WrongFieldOf({{row.field, row.below}}), row.field);
    EXPECT_EQ(WrongFieldOf({{row.field, row.above}}), row.field);
    EXPECT_EQ(WrongFieldOf({{row.field, nullptr}}), "") << "as if it were not there";
  }
}

TEST(Admission, NumbersOfContextParallelismToo) {
  struct Row {
    const char* field;
    int64_t lowest, highest;
  };
  for (const Row& row : {Row{"anchor_length", 0, 1 << 24}, Row{"passing_length", 0, 1 << 24},
                         Row{"hosts", 1, 4096}}) {
    const std::string name = absl::StrCat("apb.", row.field);
    const auto wrong = [&](int64_t value) { return WrongFieldOf({{"apb", {{row.field, value}}}}); };
    EXPECT_EQ(wrong(row.lowest), "");
    EXPECT_EQ(wrong(row.highest), "");
    EXPECT_EQ(wrong(row.lowest - 1), name);
    EXPECT_EQ(wrong(row.highest + 1), name);
  }
}

TEST(Admission, MinTokensMustNotExceedMaxTokens) {
  EXPECT_EQ(WrongFieldOf({{"min_tokens", 5}, {"max_tokens", 5}}), "");
  EXPECT_EQ(WrongFieldOf({{"min_tokens", 6}, {"max_tokens", 5}}), "min_tokens");
}

TEST(Admission, StopStringsAndTokens) {
  const auto strings = [](int count, int bytes) {
    return json{{"stop", std::vector<std::string>(count, std::string(bytes, 'x'))}};
  };
  EXPECT_EQ(WrongFieldOf(strings(kMaxStopStrings, kMaxStopStringBytes)), "");
  EXPECT_EQ(WrongFieldOf(strings(kMaxStopStrings + 1, 1)), "stop");
  EXPECT_EQ(WrongFieldOf(strings(1, kMaxStopStringBytes + 1)), "stop");
  EXPECT_EQ(WrongFieldOf(strings(1, 0)), "stop");
  const auto tokens = [](int count, int id) {
    return json{{"stop_token_ids", std::vector<int>(count, id)}};
  };
  EXPECT_EQ(WrongFieldOf(tokens(kMaxStopTokens, kVocabulary - 1)), "");
  EXPECT_EQ(WrongFieldOf(tokens(kMaxStopTokens + 1, 0)), "stop_token_ids");
  EXPECT_EQ(WrongFieldOf(tokens(1, kVocabulary)), "stop_token_ids");
  EXPECT_EQ(WrongFieldOf(tokens(1, -1)), "stop_token_ids");
}

TEST(Admission, StrategiesThatDoNotFitTheirOptions) {
  const auto wrong = [](json apb) { return WrongFieldOf({{"apb", std::move(apb)}}); };
  EXPECT_EQ(wrong({{"strategy", "ring_kv"}, {"exact", true}}), "");
  EXPECT_EQ(wrong({{"strategy", "auto"}, {"exact", true}}), "");
  EXPECT_EQ(wrong({{"strategy", "apb"}, {"exact", true}}), "apb.exact");
  EXPECT_EQ(wrong({{"strategy", "star"}, {"exact", true}}), "apb.exact");
  EXPECT_EQ(wrong({{"strategy", "apb"}, {"balanced", true}}), "");
  EXPECT_EQ(wrong({{"strategy", "full"}, {"balanced", true}}), "apb.balanced");
  EXPECT_EQ(wrong({{"strategy", "full"}, {"balanced", false}}), "");
  EXPECT_EQ(wrong({{"strategy", "no such"}}), "apb.strategy");
  EXPECT_EQ(wrong({{"compressor", "no such"}}), "apb.compressor");
  EXPECT_EQ(wrong({{"query", ""}}), "apb.query");
}

TEST(Admission, PromptsAreNeitherEmptyNorLongerThanTheContextCanHold) {
  EXPECT_EQ(WrongFieldOf({{"prompt", ""}}), "prompt");
  // 50 tokens of at most 4 bytes each, and the remainder of the division.
  EXPECT_EQ(WrongFieldOf({{"prompt", std::string(203, 'x')}}), "");
  EXPECT_EQ(WrongFieldOf({{"prompt", std::string(204, 'x')}}), "prompt");
  EXPECT_EQ(WrongFieldOf({{"prompt", std::string(221, 'x')}}), "prompt");
  EXPECT_EQ(WrongFieldOf({{"prompt", {0, kVocabulary - 1}}}), "");
  EXPECT_EQ(WrongFieldOf({{"prompt", {0, kVocabulary}}}), "prompt[1]");
  EXPECT_EQ(WrongFieldOf({{"prompt", json::array()}}), "prompt");
}

TEST(Admission, Messages) {
  const auto wrong = [](json messages) {
    return FieldOfOutcome(http_api::ParseChat({{"messages", std::move(messages)}}));
  };
  const auto message = [](const std::string& role, int bytes = 1) {
    return json{{"role", role}, {"content", std::string(bytes, 'x')}};
  };
  EXPECT_EQ(wrong(json::array()), "messages");
  for (const char* role : {"system", "developer", "user", "assistant"}) {
    EXPECT_EQ(wrong(json::array({message(role)})), "") << role;
  }
  EXPECT_EQ(wrong(json::array({message("user"), message("tool")})), "messages[1].role");
  EXPECT_EQ(wrong(json::array({message("user", 100), message("user", 103)})), "");
  EXPECT_EQ(wrong(json::array({message("user", 100), message("user", 104)})), "messages");
  EXPECT_EQ(wrong(std::vector<json>(kMaxMessages, message("user", 0))), "");
  EXPECT_EQ(wrong(std::vector<json>(kMaxMessages + 1, message("user", 0))), "messages");
}

TEST(Admission, TheTimeToLiveOfAContext) {
  const auto wrong = [](int64_t ttl) {
    return FieldOfOutcome(http_api::ParseNewContext({{"prompt", "text"}, {"ttl_seconds", ttl}}));
  };
  EXPECT_EQ(wrong(1), "");
  EXPECT_EQ(wrong(60), "");
  EXPECT_EQ(wrong(0), "ttl_seconds");
  EXPECT_EQ(wrong(61), "ttl_seconds");
}

TEST(Admission, OnlyTheServedModelExists) {
  const auto check = [](const std::string& model) {
    const auto generation = http_api::ParseCompletion({{"prompt", "text"}, {"model", model}});
    return CheckRequest(generation->request, TestLimits());
  };
  EXPECT_TRUE(check("demo").ok());
  EXPECT_TRUE(check("").ok());
  EXPECT_EQ(check("other").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrorCodeOf(check("other")), "model_not_found");
}

TEST(Admission, TheBudgetIsWhatIsAskedForOrWhatIsLeft) {
  const auto budget = [](const char* body, int64_t prompt_tokens) -> std::string {
    const json parsed = json::parse(body);
    const auto generation = parsed.contains("messages") ? http_api::ParseChat(parsed)
                                                        : http_api::ParseCompletion(parsed);
    const auto tokens = CompletionBudget(generation->request, prompt_tokens, 50);
    if (tokens.ok()) return absl::StrCat(*tokens);
    return absl::StrCat(FieldOf(tokens.status()), " ", ErrorCodeOf(tokens.status()));
  };
  const char* text = R"({"prompt": "a"})";
  const char* chat = R"({"messages": [{"role": "user", "content": "a"}]})";
  EXPECT_EQ(budget(text, 10), "16");
  EXPECT_EQ(budget(text, 34), "16");
  EXPECT_EQ(budget(text, 35), "15");
  EXPECT_EQ(budget(text, 49), "1");
  EXPECT_EQ(budget(text, 50), "prompt context_length_exceeded");
  EXPECT_EQ(budget(chat, 10), "40");
  EXPECT_EQ(budget(chat, 50), "messages context_length_exceeded");
  EXPECT_EQ(budget(R"({"prompt": "a", "max_tokens": 40})", 10), "40");
  EXPECT_EQ(budget(R"({"prompt": "a", "max_tokens": 41})", 10),
            "max_tokens context_length_exceeded");
  EXPECT_EQ(budget(R"({"prompt": "a", "min_tokens": 16})", 10), "16");
  EXPECT_EQ(budget(R"({"prompt": "a", "min_tokens": 17})", 10), "min_tokens ");
}

TEST(Admission, RequestIds) {
  EXPECT_TRUE(IsValidRequestId("aZ09._-"));
  EXPECT_TRUE(IsValidRequestId(std::string(kMaxRequestIdBytes, 'a')));
  EXPECT_FALSE(IsValidRequestId(std::string(kMaxRequestIdBytes + 1, 'a')));
  for (const char* bad : {"", "a b", "a\r\nb", "a/b", "\xc3\xa4"})
    EXPECT_FALSE(IsValidRequestId(bad));
  EXPECT_TRUE(IsValidRequestId(NewRequestId()));
  EXPECT_NE(NewRequestId(), NewRequestId());
}

}  // namespace
}  // namespace apb::request
