// Reading OpenAI's request fields.
#include "server/http/openai_codec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/http/json_body.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;
using request::Api;
using request::CanonicalRequest;
using request::InvalidField;

// Fields that would change the answer, with the one value (besides null, false, "", [], {}) that
// asks for nothing.
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

void ReadSampling(FieldReader& reader, request::Sampling* s) {
  reader.Read("max_tokens", &s->max_tokens);
  reader.Read("temperature", &s->temperature);
  reader.Read("top_p", &s->top_p);
  reader.Read("top_k", &s->top_k);
  reader.Read("min_p", &s->min_p);
  reader.Read("seed", &s->seed);
  reader.Read("presence_penalty", &s->presence_penalty);
  reader.Read("frequency_penalty", &s->frequency_penalty);
  reader.Read("repetition_penalty", &s->repetition_penalty);
  reader.Read("min_tokens", &s->min_tokens);
  reader.ReadStrings("stop", &s->stop);
  reader.Read("stop_token_ids", &s->stop_token_ids);
  reader.Read("ignore_eos", &s->ignore_eos);
  reader.Read("include_stop_str_in_output", &s->include_stop_string);
  reader.Read("skip_special_tokens", &s->skip_special_tokens);
}

absl::Status ReadApb(const json& body, request::ApbOptions* apb) {
  const auto found = body.find("apb");
  if (found == body.end() || found->is_null()) return absl::OkStatus();
  if (!found->is_object()) return InvalidField("apb", "must be an object");
  FieldReader reader(*found, "apb.");
  reader.Read("strategy", &apb->strategy);
  reader.Read("compressor", &apb->compressor);
  reader.Read("query", &apb->query);
  reader.Read("anchor_length", &apb->anchor_length);
  reader.Read("passing_length", &apb->passing_length);
  reader.Read("hosts", &apb->hosts);
  reader.Read("exact", &apb->exact);
  reader.Read("balanced", &apb->balanced);
  return reader.status();
}

// "content": a string, or a list of parts of type text.
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
    if (!part.is_object()) return InvalidField(part_name, "must be an object");
    FieldReader reader(part, part_name + ".");
    std::string type = "text", piece;
    reader.Read("type", &type);
    if (type != "text")
      reader.Fail("type", absl::StrCat("only text is supported, not ", type.substr(0, 50)));
    reader.Read("text", &piece);
    APB_RETURN_IF_ERROR(reader.status());
    text += piece;
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
    FieldReader reader(message, name + ".");
    reader.Read("role", &to.role);
    APB_RETURN_IF_ERROR(reader.status());
    APB_ASSIGN_OR_RETURN(to.content, ReadContent(message, name));
  }
  FieldReader reader(body);
  reader.Read("add_generation_prompt", &chat.add_generation_prompt);
  if (const json* arguments = reader.Find("chat_template_kwargs")) {
    if (!arguments->is_object()) return InvalidField("chat_template_kwargs", "must be an object");
    chat.template_arguments = *arguments;
  }
  APB_RETURN_IF_ERROR(reader.status());
  return chat;
}

// "prompt": a string, a list of token ids, or a list with one of these.
absl::Status ReadPrompt(const json& body, CanonicalRequest* request) {
  FieldReader reader(body);
  const json* prompt = reader.Find("prompt");
  if (prompt == nullptr) return InvalidField("prompt", "is missing");
  if (prompt->is_array() && !prompt->empty() && !(*prompt)[0].is_number()) {
    if (prompt->size() > 1)
      return InvalidField("prompt", "one prompt a request; send several requests");
    prompt = &(*prompt)[0];
  }
  if (prompt->is_string()) {
    request::TextInput input{prompt->get<std::string>()};
    reader.Read("add_special_tokens", &input.add_special_tokens);
    request->input = std::move(input);
    return reader.status();
  }
  if (!prompt->is_array()) return InvalidField("prompt", "must be a string or a list of token ids");
  const json wrapped = {{"prompt", *prompt}};
  FieldReader ids(wrapped);
  request::TokenInput input;
  ids.Read("prompt", &input.ids);
  request->input = std::move(input);
  return ids.status();
}

// Completions: a number of alternatives. Chat: a switch, and "top_logprobs" alternatives.
void ReadLogprobs(Api api, FieldReader& reader, request::Sampling* s) {
  if (api == Api::kCompletion) {
    const json* value = reader.Find("logprobs");
    if (value != nullptr && value->is_boolean()) {
      if (value->get<bool>()) s->logprobs = 0;
    } else {
      reader.Read("logprobs", &s->logprobs);
    }
    return;
  }
  bool wanted = false;
  reader.Read("logprobs", &wanted);
  std::optional<int64_t> top;
  reader.Read("top_logprobs", &top);
  if (top.value_or(0) > 0 && !wanted) reader.Fail("top_logprobs", "needs logprobs: true");
  if (wanted) s->logprobs = top.value_or(0);
}

void ReadMaxCompletionTokens(FieldReader& reader, request::Sampling* s) {
  std::optional<int64_t> completion_tokens;
  reader.Read("max_completion_tokens", &completion_tokens);
  if (!completion_tokens.has_value()) return;
  if (s->max_tokens.has_value() && s->max_tokens != completion_tokens) {
    reader.Fail("max_completion_tokens", "differs from max_tokens; give one of them");
  }
  s->max_tokens = completion_tokens;
}

absl::Status ReadStreamOptions(const json& body, Generation* generation) {
  FieldReader reader(body);
  reader.Read("stream", &generation->stream);
  reader.Read("return_progress", &generation->request.report_progress);
  if (const json* options = reader.Find("stream_options")) {
    if (!options->is_object()) return InvalidField("stream_options", "must be an object");
    if (!generation->stream) reader.Fail("stream_options", "needs stream: true");
    FieldReader nested(*options, "stream_options.");
    nested.Read("include_usage", &generation->include_usage);
    nested.Read("include_progress", &generation->request.report_progress);
    APB_RETURN_IF_ERROR(nested.status());
  }
  return reader.status();
}

// Either of the two, and which API it is of.
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
  FieldReader reader(body);
  reader.Read("model", &request.model);
  reader.Read("context", &request.context);
  ReadSampling(reader, &request.sampling);
  ReadLogprobs(api, reader, &request.sampling);
  if (api == Api::kChat) ReadMaxCompletionTokens(reader, &request.sampling);
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadStreamOptions(body, &generation));
  APB_RETURN_IF_ERROR(ReadApb(body, &request.apb));
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
  FieldReader reader(body);
  reader.Read("model", &request.model);
  reader.Read("ttl_seconds", &request.ttl_seconds);
  for (const char* field : {"stream", "context"}) {
    if (const json* value = reader.Find(field); value != nullptr && !AsksForNothing(*value))
      reader.Fail(field, "is not supported here");
  }
  if (body.contains("messages") && body.contains("prompt"))
    reader.Fail("prompt", "give either messages or prompt");
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadApb(body, &request.apb));
  APB_RETURN_IF_ERROR(ReadInput(body, &request));
  return generation;
}

absl::StatusOr<CanonicalRequest> ParseTokenize(const json& body) {
  CanonicalRequest request;
  FieldReader reader(body);
  reader.Read("model", &request.model);
  APB_RETURN_IF_ERROR(reader.status());
  APB_RETURN_IF_ERROR(ReadInput(body, &request));
  return request;
}

absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const json& body) {
  FieldReader reader(body);
  if (reader.Find("tokens") == nullptr) return InvalidField("tokens", "is missing");
  std::vector<int32_t> ids;
  reader.Read("tokens", &ids);
  APB_RETURN_IF_ERROR(reader.status());
  return ids;
}

}  // namespace apb::http_api
