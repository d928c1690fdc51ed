// Reads OpenAI's request fields.
#include "server/http/openai_codec.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/http/json_message.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using base::JsonReader;
using nlohmann::json;
using request::Api;
using request::CanonicalRequest;
using request::InvalidField;

// Unsupported fields that would change the answer. Each has one harmless value that asks for
// nothing, besides null, false, "", [] and {}.
struct Unsupported {
  const char* name;
  json harmless;
};

const std::vector<Unsupported>& UnsupportedFields() {
  static const auto* fields = new std::vector<Unsupported>{
      {"n", 1},
      {"best_of", 1},
      {"echo", false},
      {"suffix", ""},
      {"logit_bias", {}},
      {"tools", json::array()},
      {"functions", {}},
      {"tool_choice", "none"},
      {"audio", {}},
      {"function_call", "none"},
      {"prediction", {}},
      {"response_format", {{"type", "text"}}},
      {"modalities", json::array({"text"})},
      {"web_search_options", {}},
      {"prompt_logprobs", {}},
      {"guided_json", {}},
      {"guided_regex", {}},
      {"guided_choice", {}},
      {"guided_grammar", {}},
      {"structured_outputs", {}},
      {"use_beam_search", false},
      {"truncate_prompt_tokens", {}},
      {"continue_final_message", false},
      {"chat_template", {}},
      {"documents", {}},
      {"bad_words", json::array()},
      {"length_penalty", 1},
  };
  return *fields;
}

bool AsksForNothing(const json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_structured() && value.empty());
}

absl::Status CheckUnsupported(const json& body) {
  for (const Unsupported& field : UnsupportedFields()) {
    const auto found = body.find(field.name);
    if (found == body.end() || AsksForNothing(*found) || *found == field.harmless) continue;
    if (std::string_view(field.name) == "tool_choice" && *found == "auto") continue;
    const bool number = found->is_number();
    return request::WithErrorCode(
        InvalidField(field.name, absl::StrCat("is not supported", number ? " with the value " : "",
                                              number ? found->dump() : "")),
        "unsupported_parameter");
  }
  return absl::OkStatus();
}

absl::Status ReadApb(const json& body, common::v1::ApbOptions& apb) {
  const auto found = body.find("apb");
  if (found == body.end() || found->is_null()) return absl::OkStatus();
  JsonReader reader(*found, "apb.");
  ReadMessage(reader, apb);
  return reader.status();
}

// "content": a string, or a list of text parts.
absl::StatusOr<std::string> ReadContent(const json& message, const std::string& name) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) {
    return InvalidField(absl::StrCat(name, ".content"), "is missing");
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) {
    return InvalidField(absl::StrCat(name, ".content"), "must be a string or a list of text parts");
  }
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const json& part = (*content)[i];
    const std::string part_name = absl::StrCat(name, ".content[", i, "]");
    JsonReader reader(part, part_name + ".");
    const std::string type = reader.String("type", "text");
    if (type != "text")
      reader.Fail("type", absl::StrCat("only text is supported, not ", type.substr(0, 50)));
    text += reader.String("text", "");
    APB_RETURN_IF_ERROR(reader.status());
  }
  return text;
}

absl::StatusOr<request::ChatInput> ReadChat(const json& body) {
  request::ChatInput chat;
  const auto messages = body.find("messages");
  if (messages == body.end() || !messages->is_array()) {
    return InvalidField("messages", "must be a list of messages");
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    const json& message = (*messages)[i];
    const std::string name = absl::StrCat("messages[", i, "]");
    if (!message.is_object()) return InvalidField(name, "must be an object");
    for (const char* field : {"tool_calls", "function_call"}) {
      if (auto found = message.find(field); found != message.end() && !AsksForNothing(*found)) {
        return request::WithErrorCode(
            InvalidField(absl::StrCat(name, ".", field), "is not supported"),
            "unsupported_parameter");
      }
    }
    request::ChatMessage& to = chat.messages.emplace_back();
    JsonReader reader(message, name + ".");
    to.role = reader.String("role", "");
    APB_RETURN_IF_ERROR(reader.status());
    APB_ASSIGN_OR_RETURN(to.content, ReadContent(message, name));
  }
  JsonReader reader(body);
  chat.add_generation_prompt = reader.Boolean("add_generation_prompt", true);
  if (const json* arguments = reader.Find("chat_template_kwargs")) {
    if (!arguments->is_object()) return InvalidField("chat_template_kwargs", "must be an object");
    chat.template_arguments = *arguments;
  }
  APB_RETURN_IF_ERROR(reader.status());
  return chat;
}

// "prompt": a string, a list of token ids, or a list that holds one of these.
absl::Status ReadPrompt(const json& body, CanonicalRequest* request) {
  JsonReader reader(body);
  const json* prompt = reader.Find("prompt");
  if (prompt == nullptr) return InvalidField("prompt", "is missing");
  if (prompt->is_array() && !prompt->empty() && !(*prompt)[0].is_number()) {
    if (prompt->size() > 1)
      return InvalidField("prompt", "one prompt a request; send several requests");
    prompt = &(*prompt)[0];
  }
  if (prompt->is_string()) {
    request->input =
        request::TextInput{prompt->get<std::string>(), reader.Boolean("add_special_tokens", true)};
    return reader.status();
  }
  if (!prompt->is_array()) return InvalidField("prompt", "must be a string or a list of token ids");
  request->input = request::TokenInput{reader.IntegersOf("prompt", *prompt)};
  return reader.status();
}

int32_t Int32(JsonReader& reader, const char* name) {
  return static_cast<int32_t>(reader.Integer(name, std::numeric_limits<int32_t>::min(),
                                             std::numeric_limits<int32_t>::max()));
}

// Completions: the number of alternatives. Chat: a switch, and `top_logprobs` for the number.
void ReadLogprobs(Api api, JsonReader& reader, common::v1::SamplingParams& s) {
  if (api == Api::kCompletion) {
    const json* value = reader.Find("logprobs");
    if (value == nullptr || *value == false) return;
    s.set_logprobs(*value == true ? 0 : Int32(reader, "logprobs"));
    return;
  }
  const bool wanted = reader.Boolean("logprobs", false);
  const int32_t top = reader.Has("top_logprobs") ? Int32(reader, "top_logprobs") : 0;
  if (top > 0 && !wanted) reader.Fail("top_logprobs", "needs logprobs: true");
  if (wanted) s.set_logprobs(top);
}

void ReadMaxCompletionTokens(JsonReader& reader, common::v1::SamplingParams& s) {
  if (!reader.Has("max_completion_tokens")) return;
  const int32_t tokens = Int32(reader, "max_completion_tokens");
  if (s.has_max_tokens() && s.max_tokens() != tokens) {
    reader.Fail("max_completion_tokens", "differs from max_tokens; give one of them");
  }
  s.set_max_tokens(tokens);
}

absl::Status ReadStreamOptions(const json& body, Generation* generation) {
  JsonReader reader(body);
  generation->stream = reader.Boolean("stream", false);
  generation->request.report_progress = reader.Boolean("return_progress", false);
  if (const json* options = reader.Find("stream_options")) {
    if (!generation->stream) reader.Fail("stream_options", "needs stream: true");
    JsonReader nested(*options, "stream_options.");
    generation->include_usage = nested.Boolean("include_usage", false);
    generation->request.report_progress =
        nested.Boolean("include_progress", generation->request.report_progress);
    APB_RETURN_IF_ERROR(nested.status());
  }
  return reader.status();
}

// Reads `messages` or `prompt`; which one is there decides the API.
absl::Status ReadInput(const json& body, CanonicalRequest* request) {
  request->api = body.contains("messages") ? Api::kChat : Api::kCompletion;
  if (request->api == Api::kCompletion) return ReadPrompt(body, request);
  APB_ASSIGN_OR_RETURN(request->input, ReadChat(body));
  return absl::OkStatus();
}

absl::StatusOr<Generation> ParseGeneration(Api api, const json& body) {
  APB_RETURN_IF_ERROR(CheckUnsupported(body));
  Generation generation;
  CanonicalRequest& request = generation.request;
  request.api = api;
  JsonReader reader(body);
  request.model = reader.String("model", "");
  if (reader.Has("context")) request.context = reader.String("context");
  ReadMessage(reader, request.sampling, {"logprobs"});
  ReadLogprobs(api, reader, request.sampling);
  if (api == Api::kChat) ReadMaxCompletionTokens(reader, request.sampling);
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadStreamOptions(body, &generation));
  APB_RETURN_IF_ERROR(ReadApb(body, request.apb));
  if (api == Api::kChat) {
    APB_ASSIGN_OR_RETURN(request.input, ReadChat(body));
  } else {
    APB_RETURN_IF_ERROR(ReadPrompt(body, &request));
  }
  return generation;
}

}  // namespace

absl::StatusOr<Generation> ParseCompletion(const json& body) {
  return ParseGeneration(Api::kCompletion, body);
}

absl::StatusOr<Generation> ParseChat(const json& body) { return ParseGeneration(Api::kChat, body); }

absl::StatusOr<Generation> ParseNewContext(const json& body) {
  APB_RETURN_IF_ERROR(CheckUnsupported(body));
  Generation generation;
  CanonicalRequest& request = generation.request;
  request.create_context = true;
  JsonReader reader(body);
  request.model = reader.String("model", "");
  if (reader.Has("ttl_seconds")) {
    request.ttl_seconds = reader.Integer("ttl_seconds", std::numeric_limits<int64_t>::min(),
                                         std::numeric_limits<int64_t>::max());
  }
  for (const char* field : {"stream", "context"}) {
    if (const json* value = reader.Find(field); value != nullptr && !AsksForNothing(*value))
      reader.Fail(field, "is not supported here");
  }
  if (body.contains("messages") && body.contains("prompt"))
    reader.Fail("prompt", "give either messages or prompt");
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadApb(body, request.apb));
  APB_RETURN_IF_ERROR(ReadInput(body, &request));
  return generation;
}

absl::StatusOr<CanonicalRequest> ParseTokenize(const json& body) {
  CanonicalRequest request;
  JsonReader reader(body);
  request.model = reader.String("model", "");
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadInput(body, &request));
  return request;
}

absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const json& body) {
  JsonReader reader(body);
  reader.Array("tokens");
  std::vector<int32_t> ids = reader.Integers("tokens");
  APB_RETURN_IF_ERROR(reader.status());
  return ids;
}

}  // namespace apb::http_api
