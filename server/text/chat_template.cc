// The entry points around jinja/, and the variables that transformers gives to templates.
#include "server/text/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/parser.h"
#include "server/text/jinja/renderer.h"
#include "server/text/jinja/value.h"

namespace apb::text {
namespace {

constexpr uint64_t kMaxFileBytes = 16 << 20;

using jinja::Dict;
using jinja::Origin;
using jinja::Value;

// Many templates write their special tokens as '<|' + role + '|>'. So the usual roles count as the
// template's own text; any other role stays the caller's.
bool IsCommonRole(std::string_view role) {
  for (const char* known : {"system", "developer", "user", "assistant", "tool", "function"}) {
    if (role == known) return true;
  }
  return false;
}

// The reasoning of an answer has several names in requests; templates read two of them, which
// transformers fills in.
void AddReasoningNames(Dict& message) {
  const Value* reasoning = nullptr;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    if (reasoning == nullptr || reasoning->IsNone()) reasoning = message.Find(name);
  }
  if (reasoning == nullptr || reasoning->IsNone()) return;
  const Value copy = *reasoning;
  if (message.Find("thinking") == nullptr) message.Set("thinking", copy);
  message.Set("reasoning_content", copy);
}

Value MessagesValue(const Json& messages, std::vector<std::string>& roles) {
  if (!messages.is_array()) jinja::Fail("messages must be an array");
  std::vector<Value> values;
  for (const Json& message : messages) {
    const int index = static_cast<int>(values.size());
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      jinja::Fail("messages[", index, "] must be an object with a role");
    roles.push_back(message["role"].get<std::string>());
    Dict dict;
    dict.origin = Origin{index, false};
    dict.message_index = index;
    for (const auto& [key, value] : message.items()) {
      const bool own_word = key == "role" && IsCommonRole(roles.back());
      dict.Set(key, own_word ? Value::String(roles.back())
                             : jinja::FromJson(value, Origin{index, key == "content"}));
    }
    AddReasoningNames(dict);
    values.push_back(Value::MakeDict(std::move(dict)));
  }
  return Value::MakeList(std::move(values));
}

// The template's source from chat_template.jinja or from tokenizer_config.json, which holds a
// string or a list of named templates.
absl::StatusOr<std::string> FindSource(const std::string& folder) {
  auto own = base::ReadFile(folder + "/chat_template.jinja", kMaxFileBytes);
  if (own.ok() || !absl::IsNotFound(own.status())) return own;
  const std::string path = folder + "/tokenizer_config.json";
  APB_ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kMaxFileBytes));
  APB_ASSIGN_OR_RETURN(const nlohmann::json config, base::ParseJsonObject(text, path));
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) {
    return absl::NotFoundError(absl::StrCat(folder, ": has no chat template"));
  }
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const nlohmann::json& entry : *found) {
      if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": chat_template is no text and has none named \"default\""));
}

}  // namespace

std::vector<PromptSegment> RenderedPrompt::Segments() const {
  std::vector<PromptSegment> segments;
  const std::string_view all = text;
  size_t done = 0;
  for (const UserSpan& span : user_spans) {
    if (span.range.begin > done)
      segments.push_back({.text = all.substr(done, span.range.begin - done)});
    segments.push_back({.text = all.substr(span.range.begin, span.range.end - span.range.begin),
                        .from_user = true,
                        .message_index = span.message_index,
                        .is_content = span.is_content});
    done = span.range.end;
  }
  if (done < all.size()) segments.push_back({.text = all.substr(done)});
  return segments;
}

std::vector<ByteRange> RenderedPrompt::UserRanges() const {
  std::vector<ByteRange> ranges;
  for (const UserSpan& span : user_spans) ranges.push_back(span.range);
  return ranges;
}

struct ChatTemplate::Impl {
  jinja::Block block;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  try {
    auto impl = std::make_unique<Impl>();
    impl->block = jinja::Parse(source);
    return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
  } catch (const jinja::TemplateError& error) {
    return absl::Status(error.status().code(),
                        absl::StrCat("chat template: ", error.status().message()));
  }
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(
    const std::string& checkpoint_folder) {
  APB_ASSIGN_OR_RETURN(const std::string source, FindSource(checkpoint_folder));
  return Parse(source);
}

absl::StatusOr<RenderedPrompt> ChatTemplate::Render(const Json& messages,
                                                    const RenderOptions& options) const {
  RenderedPrompt prompt;
  try {
    Dict variables;
    for (const auto& [name, token] : options.special_tokens)
      variables.Set(name, Value::String(token));
    variables.Set("messages", MessagesValue(messages, prompt.roles));
    variables.Set("tools", jinja::FromJson(options.tools, Origin{}));
    variables.Set("documents", Value::MakeNone());
    variables.Set("add_generation_prompt", Value::Bool(options.add_generation_prompt));
    if (options.kwargs.is_object()) {
      for (const auto& [name, value] : options.kwargs.items())
        variables.Set(name, jinja::FromJson(value, Origin{}));
    }
    jinja::Rendered rendered =
        jinja::Render(impl_->block, variables, options.now.value_or(absl::Now()));
    prompt.text = rendered.text.bytes();
    for (const jinja::Text::Span& span : rendered.text.spans())
      prompt.user_spans.push_back(
          {{span.begin, span.end}, span.origin.message_index, span.origin.is_content});
    for (const auto& turn : rendered.turns)
      prompt.turns.push_back({{turn.begin, turn.end}, turn.message_index});
  } catch (const jinja::TemplateError& error) {
    return error.status();
  }
  return prompt;
}

absl::StatusOr<std::vector<int32_t>> Tokenize(const Tokenizer& tokenizer,
                                              const RenderedPrompt& prompt) {
  const std::vector<ByteRange> plain = prompt.UserRanges();
  return tokenizer.Encode(
      prompt.text, {.add_special_tokens = false, .parse_special = true, .plain_ranges = plain});
}

}  // namespace apb::text
