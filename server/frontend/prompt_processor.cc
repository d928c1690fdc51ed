// Loads and uses the text half of a checkpoint.
#include "server/frontend/prompt_processor.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::frontend {
namespace {

std::optional<std::string> QueryOf(const request::CanonicalRequest& request) {
  if (!request.apb.has_query()) return std::nullopt;
  return request.apb.query();
}

// The splitter's errors carry no field. An error about the query begins with "apb.query ", which
// becomes the field.
absl::Status WithQueryField(const absl::Status& status) {
  absl::string_view problem = status.message();
  if (!absl::IsInvalidArgument(status) || !absl::ConsumePrefix(&problem, "apb.query "))
    return status;
  return request::InvalidField("apb.query", base::StdView(problem));
}

// The conversation of a context followed by more messages. A user message after a user message
// continues it, because many templates refuse two of them in a row.
request::ChatInput Join(const request::ChatInput& context, const request::ChatInput& more) {
  request::ChatInput joined = more;
  joined.messages = context.messages;
  auto next = more.messages.begin();
  if (joined.messages.back().role == "user" && next->role == "user") {
    joined.messages.back().content += "\n\n" + next->content;
    ++next;
  }
  joined.messages.insert(joined.messages.end(), next, more.messages.end());
  joined.template_arguments = context.template_arguments;
  joined.template_arguments.update(more.template_arguments);
  return joined;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PromptProcessor>> PromptProcessor::Load(const std::string& folder) {
  std::unique_ptr<PromptProcessor> model(new PromptProcessor);
  APB_ASSIGN_OR_RETURN(model->config_, base::LoadCheckpointConfig(folder));
  APB_ASSIGN_OR_RETURN(model->tokenizer_, text::Tokenizer::Load(folder + "/tokenizer.json"));
  auto chat_template = text::ChatTemplate::Load(folder);
  if (chat_template.ok()) {
    model->chat_template_ = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  std::vector<int32_t>& stops = model->stop_tokens_;
  stops = model->config_.eos_token_ids;
  if (auto eos = model->tokenizer_->eos_id()) stops.push_back(*eos);
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  std::erase_if(stops, [&](int32_t id) { return id < 0 || id >= model->vocab_size(); });
  if (stops.empty())
    APB_LOG(Warning, "the checkpoint names no eos token: completions end by length");
  return model;
}

absl::StatusOr<text::RenderedPrompt> PromptProcessor::Render(const request::ChatInput& input,
                                                             std::optional<absl::Time> now) const {
  if (chat_template_ == nullptr) {
    return request::InvalidField("messages",
                                 "this model has no chat template; use /v1/completions");
  }
  text::Json messages = text::Json::array();
  for (const request::ChatMessage& message : input.messages) {
    // OpenAI calls the system messages of newer models "developer"; templates do not know that
    // name.
    const std::string role = message.role == "developer" ? "system" : message.role;
    messages.push_back({{"role", role}, {"content", message.content}});
  }
  text::RenderOptions options;
  options.add_generation_prompt = input.add_generation_prompt;
  if (!input.template_arguments.empty()) options.kwargs = text::Json(input.template_arguments);
  options.special_tokens = tokenizer_->special_tokens();
  options.now = now;
  auto rendered = chat_template_->Render(messages, options);
  if (!rendered.ok() && absl::IsInvalidArgument(rendered.status())) {
    return request::InvalidField("messages", base::StdView(rendered.status().message()));
  }
  return rendered;
}

absl::StatusOr<text::PromptSplit> PromptProcessor::Prepare(const request::CanonicalRequest& request,
                                                           const contexts::Context* context) const {
  absl::StatusOr<text::PromptSplit> split =
      context != nullptr ? GoOnFrom(*context, request) : Split(request);
  return split.ok() ? std::move(split) : WithQueryField(split.status());
}

absl::Status PromptProcessor::PrepareContext(const request::CanonicalRequest& request,
                                             contexts::Context& context) const {
  absl::StatusOr<text::PromptSplit> split = SplitContext(request, context);
  if (!split.ok()) return WithQueryField(split.status());
  context.prompt = *std::move(split);
  return absl::OkStatus();
}

absl::StatusOr<text::PromptSplit> PromptProcessor::Split(
    const request::CanonicalRequest& request) const {
  if (const auto* chat = std::get_if<request::ChatInput>(&request.input)) {
    APB_ASSIGN_OR_RETURN(const text::RenderedPrompt rendered, Render(*chat));
    return text::SplitChatPrompt(*tokenizer_, rendered, QueryOf(request));
  }
  const text::PlainPromptOptions options = PlainOptions(request);
  if (const auto* tokens = std::get_if<request::TokenInput>(&request.input)) {
    return text::SplitTokenPrompt(*tokenizer_, tokens->ids, options);
  }
  return text::SplitPlainPrompt(*tokenizer_, std::get<request::TextInput>(request.input).text,
                                options);
}

text::PlainPromptOptions PromptProcessor::PlainOptions(
    const request::CanonicalRequest& request) const {
  const auto* plain = std::get_if<request::TextInput>(&request.input);
  return {.add_special_tokens = plain != nullptr && plain->add_special_tokens,
          .query = QueryOf(request),
          .end_of_turn_ids = stop_tokens_};
}

absl::StatusOr<text::PromptSplit> PromptProcessor::SplitContext(
    const request::CanonicalRequest& request, contexts::Context& context) const {
  const std::optional<std::string> query = QueryOf(request);
  if (const auto* tokens = std::get_if<request::TokenInput>(&request.input)) {
    return text::SplitTokenContext(*tokenizer_, tokens->ids, query);
  }
  if (const auto* plain = std::get_if<request::TextInput>(&request.input)) {
    context.text = {.text = plain->text, .add_special_tokens = plain->add_special_tokens};
    return text::SplitPlainContext(*tokenizer_, *context.text, query);
  }
  request::ChatInput chat = std::get<request::ChatInput>(request.input);
  chat.add_generation_prompt = false;
  // More text may follow in the last message, and templates strip blanks only at its end.
  absl::StripTrailingAsciiWhitespace(&chat.messages.back().content);
  APB_ASSIGN_OR_RETURN(const text::RenderedPrompt rendered, Render(chat, context.created));
  absl::StatusOr<text::ContextText> text = text::TextOfChatContext(rendered);
  if (!text.ok()) return request::InvalidField("messages", base::StdView(text.status().message()));
  context.chat = std::move(chat);
  context.text = *std::move(text);
  return text::SplitChatContext(*tokenizer_, rendered, *context.text, query);
}

absl::StatusOr<text::PromptSplit> PromptProcessor::GoOnFrom(
    const contexts::Context& context, const request::CanonicalRequest& request) const {
  APB_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, TokensBehind(context, request));
  return text::GoOnFromContext(context.prompt, std::move(tokens));
}

absl::StatusOr<std::vector<int32_t>> PromptProcessor::TokensBehind(
    const contexts::Context& context, const request::CanonicalRequest& request) const {
  if (const auto* more = std::get_if<request::TokenInput>(&request.input)) {
    std::vector<int32_t> tokens = context.prompt.tokens;
    tokens.insert(tokens.end(), more->ids.begin(), more->ids.end());
    return tokens;
  }
  if (const auto* more = std::get_if<request::TextInput>(&request.input)) {
    return context.text.has_value() ? text::TokenizeBehind(*tokenizer_, *context.text, more->text,
                                                           more->add_special_tokens)
                                    : text::TokenizeBehind(*tokenizer_, context.prompt.tokens,
                                                           more->text, more->add_special_tokens);
  }
  if (!context.chat.has_value()) {
    return request::InvalidField("context",
                                 "was made of a prompt, not of messages; use /v1/completions");
  }
  APB_ASSIGN_OR_RETURN(
      const text::RenderedPrompt rendered,
      Render(Join(*context.chat, std::get<request::ChatInput>(request.input)), context.created));
  if (!rendered.text.starts_with(context.text->text)) {
    return request::InvalidField(
        "messages",
        "with these messages the chat template renders the context's differently; "
        "send all messages without a context");
  }
  return text::Tokenize(*tokenizer_, rendered);
}

absl::StatusOr<std::vector<int32_t>> PromptProcessor::Encode(
    const request::CanonicalRequest& request) const {
  if (const auto* chat = std::get_if<request::ChatInput>(&request.input)) {
    APB_ASSIGN_OR_RETURN(const text::RenderedPrompt rendered, Render(*chat));
    return text::Tokenize(*tokenizer_, rendered);
  }
  if (const auto* tokens = std::get_if<request::TokenInput>(&request.input)) return tokens->ids;
  const auto& plain = std::get<request::TextInput>(request.input);
  return tokenizer_->Encode(
      plain.text, {.add_special_tokens = plain.add_special_tokens, .parse_special = true});
}

}  // namespace apb::frontend
