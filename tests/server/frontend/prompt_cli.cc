// Test tool: prepares prompts as the server does, without a server. It reads one JSON request per
// line from standard input and answers each with one line.
//  {"checkpoint": "folder"} -> {}; later requests use this checkpoint
//  {INPUT, "query": "...", "context": {INPUT}} -> {"ids": [...], "query_begin": n, "insert": n,
//   "embedded": [...], "context": [...]}; "query" and "context" are optional, the answer's
//   "context" holds the context's tokens, and INPUT is one of
//     "prompt": "...", "add_special_tokens": bool
//     "ids": [...]
//     "messages": [...]
// An error is {"error": "..."}.
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/frontend/prompt_processor.h"

namespace apb::frontend {
namespace {

using Json = nlohmann::json;

request::CanonicalRequest RequestOf(const Json& json) {
  request::CanonicalRequest request;
  if (json.contains("messages")) {
    request::ChatInput chat;
    for (const Json& message : json["messages"])
      chat.messages.push_back({message["role"], message["content"]});
    request.input = std::move(chat);
  } else if (json.contains("ids")) {
    request.input = request::TokenInput{json["ids"].get<std::vector<int32_t>>()};
  } else {
    request.input = request::TextInput{json["prompt"], json.value("add_special_tokens", true)};
  }
  if (json.contains("query")) request.apb.set_query(json["query"].get<std::string>());
  return request;
}

absl::StatusOr<Json> Prepare(const PromptProcessor& model, const Json& json) {
  contexts::Context context;
  const bool goes_on = json.contains("context");
  if (goes_on) {
    context.created = absl::Now();
    APB_RETURN_IF_ERROR(model.PrepareContext(RequestOf(json["context"]), context));
  }
  APB_ASSIGN_OR_RETURN(const text::PromptSplit split,
                       model.Prepare(RequestOf(json), goes_on ? &context : nullptr));
  return Json{{"ids", split.tokens},
              {"query_begin", split.query_begin},
              {"insert", split.query_insert_position},
              {"embedded", split.embedded_query},
              {"context", context.prompt.tokens}};
}

absl::StatusOr<Json> Answer(const Json& json, std::unique_ptr<PromptProcessor>& model) {
  if (json.contains("checkpoint")) {
    APB_ASSIGN_OR_RETURN(model, PromptProcessor::Load(json["checkpoint"]));
    return Json::object();
  }
  if (model == nullptr) return absl::FailedPreconditionError("no checkpoint");
  return Prepare(*model, json);
}

int Main() {
  std::unique_ptr<PromptProcessor> model;
  for (std::string line; std::getline(std::cin, line);) {
    const absl::StatusOr<Json> answer = Answer(Json::parse(line), model);
    std::cout << (answer.ok() ? *answer : Json{{"error", answer.status().ToString()}}) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace apb::frontend

int main() { return apb::frontend::Main(); }
