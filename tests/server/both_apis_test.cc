// Goal: HTTP and gRPC take the same fields, with the same defaults and limits, and a field that one
// of them lacks is noticed. Method: a table pairs JSON with the message of the same meaning; both
// codecs read them, and the results are resolved and compared. The messages' descriptors then tell
// whether a field is in no row of the table.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "google/protobuf/text_format.h"
#include "server/grpc/request_codec.h"
#include "server/http/openai_codec.h"
#include "server/request/admission.h"
#include "server/request/status_map.h"

namespace apb {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using request::CanonicalRequest;

constexpr uint64_t kSeed = 1;

request::Limits TestLimits() {
  return {.model = "demo",
          .max_model_len = 1000,
          .vocab_size = 100,
          .max_context_ttl_seconds = 60,
          .strategies = {{"auto", true, true},
                         {"full", true, false},
                         {"apb", false, true},
                         {"star", false, false},
                         {"ring_kv", true, false}},
          .default_strategy = "ring_kv",
          .eos_token_ids = {2, 3}};
}

absl::StatusOr<CanonicalRequest> OfHttp(const std::string& body, bool chat = false) {
  const auto json = base::ParseJsonObject(body, "the body");
  if (!json.ok()) return json.status();
  auto generation = chat ? http_api::ParseChat(*json) : http_api::ParseCompletion(*json);
  if (!generation.ok()) return generation.status();
  return generation->request;
}

absl::StatusOr<CanonicalRequest> OfGrpc(const std::string& text) {
  inference::v1::GenerateRequest message;
  if (!google::protobuf::TextFormat::ParseFromString(text, &message))
    return absl::InternalError("the test's message is wrong: " + text);
  return grpc_api::FromMessage(message);
}

// Everything that a codec fills in except the request's ids, as text.
std::string Describe(const CanonicalRequest& request) {
  std::string input;
  if (const auto* text = std::get_if<request::TextInput>(&request.input)) input = text->text;
  if (const auto* tokens = std::get_if<request::TokenInput>(&request.input))
    for (const int32_t id : tokens->ids) absl::StrAppend(&input, id, ",");
  if (const auto* chat = std::get_if<request::ChatInput>(&request.input))
    for (const auto& message : chat->messages)
      absl::StrAppend(&input, message.role, ":", message.content, ";");
  return absl::StrCat(request.model, "|", static_cast<int>(request.api), "|", input, "|",
                      request.context.value_or("no context"), "|", request.report_progress, "\n",
                      request.sampling.DebugString(), "\n", request.apb.DebugString());
}

// The resolved request or the error, as text.
std::string Outcome(absl::StatusOr<CanonicalRequest> request) {
  absl::Status status = request.status();
  if (status.ok()) {
    const bool has_seed = request->sampling.has_seed();
    status = request::Resolve(TestLimits(), *request);
    if (status.ok() && !has_seed) request->sampling.set_seed(kSeed);  // otherwise it is random
  }
  if (status.ok()) return Describe(*request);
  return absl::StrCat(status.ToString(), " field=", request::FieldOf(status));
}

struct Row {
  const char* json;
  const char* proto;
};

// Fields that are sent beside a prompt. Rows that both APIs refuse are of use too: the errors must
// have the same words.
constexpr Row kSampling[] = {
    {"", ""},
    {R"("max_tokens": 7)", "max_tokens: 7"},
    {R"("max_tokens": 0)", "max_tokens: 0"},
    {R"("temperature": 0)", "temperature: 0"},
    {R"("temperature": 1.5)", "temperature: 1.5"},
    {R"("temperature": 2.5)", "temperature: 2.5"},
    {R"("temperature": null)", ""},
    {R"("top_p": 0.5)", "top_p: 0.5"},
    {R"("top_p": 0)", "top_p: 0"},
    {R"("top_k": 40)", "top_k: 40"},
    {R"("top_k": -1)", "top_k: -1"},
    {R"("top_k": -2)", "top_k: -2"},
    {R"("min_p": 0.1)", "min_p: 0.1"},
    {R"("min_p": -0.1)", "min_p: -0.1"},
    {R"("seed": 18446744073709551615)", "seed: 18446744073709551615"},
    {R"("presence_penalty": -2)", "presence_penalty: -2"},
    {R"("presence_penalty": 3)", "presence_penalty: 3"},
    {R"("frequency_penalty": 1)", "frequency_penalty: 1"},
    {R"("frequency_penalty": -3)", "frequency_penalty: -3"},
    {R"("repetition_penalty": 1.2)", "repetition_penalty: 1.2"},
    {R"("repetition_penalty": 0)", "repetition_penalty: 0"},
    {R"("stop": "a")", "stop: 'a'"},
    {R"("stop": ["a", "b"])", "stop: ['a', 'b']"},
    {R"("stop": [""])", "stop: ''"},
    {R"("ignore_eos": true)", "ignore_eos: true"},
    {R"("logprobs": 2)", "logprobs: 2"},
    {R"("logprobs": true)", "logprobs: 0"},
    {R"("logprobs": false)", ""},
    {R"("logprobs": 21)", "logprobs: 21"},
    {R"("min_tokens": 2, "max_tokens": 2)", "min_tokens: 2 max_tokens: 2"},
    {R"("min_tokens": 3, "max_tokens": 2)", "min_tokens: 3 max_tokens: 2"},
    {R"("stop_token_ids": [7, 99])", "stop_token_ids: [7, 99]"},
    {R"("stop_token_ids": [100])", "stop_token_ids: 100"},
    {R"("stop_token_ids": [-1])", "stop_token_ids: -1"},
    {R"("stop_token_ids": [7], "ignore_eos": true)", "stop_token_ids: 7 ignore_eos: true"},
    {R"("include_stop_str_in_output": true)", "include_stop_str_in_output: true"},
    {R"("skip_special_tokens": false)", "skip_special_tokens: false"},
};

constexpr Row kApb[] = {
    {"", ""},
    {R"("strategy": "full")", "strategy: 'full'"},
    {R"("strategy": "")", "strategy: ''"},
    {R"("strategy": "fast")", "strategy: 'fast'"},
    {R"("anchor_length": 0)", "anchor_length: 0"},
    {R"("anchor_length": -1)", "anchor_length: -1"},
    {R"("passing_length": 512)", "passing_length: 512"},
    {R"("passing_length": 16777217)", "passing_length: 16777217"},
    {R"("hosts": 8)", "hosts: 8"},
    {R"("hosts": 0)", "hosts: 0"},
    {R"("compressor": "random")", "compressor: 'random'"},
    {R"("compressor": "zip")", "compressor: 'zip'"},
    {R"("query": "why?")", "query: 'why?'"},
    {R"("query": "")", "query: ''"},
    {R"("exact": true)", "exact: true"},
    {R"("exact": true, "strategy": "apb")", "exact: true strategy: 'apb'"},
    {R"("balanced": false)", "balanced: false"},
    {R"("balanced": true, "strategy": "full")", "balanced: true strategy: 'full'"},
};

std::string HttpBody(const Row& sampling, const Row& apb) {
  return absl::StrCat(R"({"prompt": "x", "apb": {)", apb.json, "}",
                      *sampling.json == '\0' ? "" : ", ", sampling.json, "}");
}

std::string GrpcMessage(const Row& sampling, const Row& apb) {
  return absl::StrCat("text: 'x' sampling {", sampling.proto, "} apb {", apb.proto, "}");
}

void CollectFields(const Message& message, std::set<std::string>& names) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) names.insert(field->name());
}

void ExpectAll(const google::protobuf::Descriptor& descriptor, const std::set<std::string>& names) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const std::string& name = descriptor.field(i)->name();
    EXPECT_TRUE(names.contains(name))
        << "no row sets " << descriptor.name() << "." << name << " over HTTP";
  }
}

TEST(BothApis, SameFieldsDefaultsAndLimits) {
  std::set<std::string> sampling, apb;
  std::vector<std::pair<Row, Row>> rows;
  for (const Row& row : kSampling) rows.emplace_back(row, Row{"", ""});
  for (const Row& row : kApb) rows.emplace_back(Row{"", ""}, row);
  for (const auto& [s, a] : rows) {
    const auto http = OfHttp(HttpBody(s, a));
    const auto grpc = OfGrpc(GrpcMessage(s, a));
    ASSERT_TRUE(http.ok() && grpc.ok()) << http.status() << grpc.status();
    EXPECT_EQ(Describe(*http), Describe(*grpc));
    EXPECT_EQ(Outcome(http), Outcome(grpc));
    CollectFields(http->sampling, sampling);
    CollectFields(http->apb, apb);
  }
  ExpectAll(*common::v1::SamplingParams::descriptor(), sampling);
  ExpectAll(*common::v1::ApbOptions::descriptor(), apb);
}

TEST(BothApis, SameInputs) {
  constexpr char kChat[] = R"("messages": [{"role": "user", "content": "y"}])";
  constexpr char kChatProto[] = "chat {messages {role: 'user' content: 'y'}}";
  const std::tuple<std::string, std::string, bool> cases[] = {
      {R"({"prompt": [5, 6], "model": "demo"})", "tokens {ids: [5, 6]} model: 'demo'", false},
      {R"({"prompt": [5, 100]})", "tokens {ids: [5, 100]}", false},
      {R"({"prompt": [-5]})", "tokens {ids: -5}", false},
      {R"({"prompt": ""})", "text: ''", false},
      {R"({"prompt": "x", "model": "else"})", "text: 'x' model: 'else'", false},
      {R"({"prompt": "x", "context": "ctx-1", "return_progress": true})",
       "text: 'x' context: 'ctx-1' include_progress: true", false},
      {absl::StrCat("{", kChat, "}"), kChatProto, true},
      {R"({"messages": [{"role": "x", "content": "y"}]})",
       "chat {messages {role: 'x' content: 'y'}}", true},
      {R"({"messages": []})", "chat {}", true},
      // The same fields under OpenAI's names.
      {absl::StrCat("{", kChat, R"(, "max_completion_tokens": 9})"),
       absl::StrCat(kChatProto, "sampling {max_tokens: 9}"), true},
      {absl::StrCat("{", kChat, R"(, "logprobs": true, "top_logprobs": 2})"),
       absl::StrCat(kChatProto, "sampling {logprobs: 2}"), true}};
  for (const auto& [json, proto, chat] : cases)
    EXPECT_EQ(Outcome(OfHttp(json, chat)), Outcome(OfGrpc(proto))) << json;
}

// A default that once differed between the APIs: how many tokens are generated without max_tokens.
TEST(BothApis, SameCompletionBudget) {
  const std::tuple<absl::StatusOr<CanonicalRequest>, int64_t> cases[] = {
      {OfHttp(R"({"prompt": "x"})"), 16},
      {OfGrpc("text: 'x'"), 16},
      {OfHttp(R"({"prompt": [1]})"), 16},
      {OfGrpc("tokens {ids: 1}"), 16},
      {OfHttp(R"({"messages": [{"role": "user", "content": "y"}]})", true), 990},
      {OfGrpc("chat {messages {role: 'user' content: 'y'}}"), 990}};
  for (auto [request, budget] : cases) {
    ASSERT_TRUE(request::Resolve(TestLimits(), *request).ok());
    EXPECT_EQ(*request::CompletionBudget(*request, 10, 1000), budget);
  }
}

TEST(BothApis, WrongTypesAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("temperature": "hot")", "temperature"},
      {R"("top_k": 1.5)", "top_k"},
      {R"("max_tokens": 5000000000)", "max_tokens"},
      {R"("seed": "x")", "seed"},
      {R"("ignore_eos": 1)", "ignore_eos"},
      {R"("stop": [1])", "stop"},
      {R"("stop_token_ids": 7)", "stop_token_ids"},
      {R"("logprobs": "x")", "logprobs"},
      {R"("apb": 7)", "apb"},
      {R"("apb": {"hosts": true})", "apb.hosts"},
      {R"("apb": {"query": 1})", "apb.query"}};
  for (const auto& [json, field] : cases) {
    const auto request = OfHttp(absl::StrCat(R"({"prompt": "x", )", json, "}"));
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_EQ(request::FieldOf(request.status()), field);
  }
}

TEST(Resolve, FillsInDefaults) {
  CanonicalRequest request = *OfGrpc("text: 'x' sampling {stop_token_ids: 9 top_k: -1}");
  ASSERT_TRUE(request::Resolve(TestLimits(), request).ok());
  request.sampling.set_seed(kSeed);
  common::v1::SamplingParams expected;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      "temperature: 1 top_p: 1 top_k: 0 min_p: 0 seed: 1 presence_penalty: 0 frequency_penalty: 0 "
      "repetition_penalty: 1 min_tokens: 0 stop_token_ids: [9, 2, 3] skip_special_tokens: true",
      &expected));
  EXPECT_EQ(request.sampling.DebugString(), expected.DebugString());
  EXPECT_EQ(request.apb.DebugString(), "strategy: \"ring_kv\"\n");
}

// No number lacks a range because it was forgotten in the tables.
TEST(Resolve, EveryNumberHasARange) {
  for (const bool of_apb : {false, true}) {
    CanonicalRequest plain = *OfGrpc("text: 'x'");
    const Message& message = of_apb ? static_cast<const Message&>(plain.apb) : plain.sampling;
    const auto* descriptor = message.GetDescriptor();
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const FieldDescriptor* field = descriptor->field(i);
      const bool whole = field->cpp_type() == FieldDescriptor::CPPTYPE_INT32;
      if (field->is_repeated() || !(whole || field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE))
        continue;
      for (const int number : {-1000, 2000000000}) {
        CanonicalRequest request = plain;
        Message* to = of_apb ? static_cast<Message*>(&request.apb) : &request.sampling;
        whole ? to->GetReflection()->SetInt32(to, field, number)
              : to->GetReflection()->SetDouble(to, field, number);
        const absl::Status status = request::Resolve(TestLimits(), request);
        EXPECT_EQ(request::FieldOf(status), absl::StrCat(of_apb ? "apb." : "", field->name()));
      }
    }
  }
}

TEST(TakeContextOptions, RepeatedOnesAreFineOthersAreNot) {
  const auto apb = [](const std::string& text) {
    common::v1::ApbOptions options;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &options)) << text;
    return options;
  };
  const auto context = apb("strategy: 'auto' hosts: 8 anchor_length: 0 query: 'why?'");
  for (const char* fine :
       {"", "strategy: 'apb'", "strategy: 'auto' hosts: 8", "anchor_length: 0", "exact: false"}) {
    common::v1::ApbOptions asked = apb(fine);
    EXPECT_TRUE(request::TakeContextOptions(context, "apb", TestLimits(), asked).ok()) << fine;
    EXPECT_EQ(asked.DebugString(), context.DebugString());
  }
  const std::pair<const char*, const char*> cases[] = {{"strategy: 'full'", "apb.strategy"},
                                                       {"compressor: 'random'", "apb.compressor"},
                                                       {"hosts: 4", "apb.hosts"},
                                                       {"anchor_length: 1", "apb.anchor_length"},
                                                       {"passing_length: 0", "apb.passing_length"},
                                                       {"balanced: false", "apb.balanced"},
                                                       {"exact: true", "apb.exact"},
                                                       {"query: 'why?'", "apb.query"}};
  for (const auto& [text, field] : cases) {
    common::v1::ApbOptions asked = apb(text);
    EXPECT_EQ(request::FieldOf(request::TakeContextOptions(context, "apb", TestLimits(), asked)),
              field);
  }
}

}  // namespace
}  // namespace apb
