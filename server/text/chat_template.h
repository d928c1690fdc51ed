// Renders a conversation with the checkpoint's own Jinja template, byte for byte as transformers
// does, and remembers which bytes came from the caller. README.md describes the Jinja subset; a
// template that uses anything else fails to load. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "server/text/byte_range.h"
#include "server/text/tokenizer.h"

namespace apb::text {

// An ordered type, because templates print tools and arguments in the client's order.
using Json = nlohmann::ordered_json;

// A piece of rendered text.
struct PromptSegment {
  std::string_view text;  // a view into RenderedPrompt::text
  bool from_user = false;
  // The message from which it came; -1 for template text, tools or template arguments.
  int message_index = -1;
  // True for (a part of) the message's content; false for its role, name or tool calls.
  bool is_content = false;
};

struct RenderedPrompt {
  // Bytes that came from the request.
  struct UserSpan {
    ByteRange range;
    int message_index = -1;
    bool is_content = false;
  };
  // The text that one pass of a loop over the messages printed: the turn of that message.
  struct Turn {
    ByteRange range;
    int message_index = 0;
  };

  std::string text;
  std::vector<UserSpan> user_spans;  // ascending and disjoint
  std::vector<Turn> turns;           // in the order of their begins
  std::vector<std::string> roles;    // of all messages

  // The whole text, cut where its origin changes.
  std::vector<PromptSegment> Segments() const;
  // The ranges of user_spans, for EncodeOptions::plain_ranges.
  std::vector<ByteRange> UserRanges() const;
};

struct RenderOptions {
  bool add_generation_prompt = true;
  // A JSON array of tools, or null.
  Json tools = nullptr;
  // Further variables of the template (chat_template_kwargs): an object or null.
  Json kwargs = nullptr;
  // Tokenizer::special_tokens(): bos_token, eos_token and so on. They count as the template's own
  // text.
  std::map<std::string, std::string> special_tokens;
  // The time that strftime_now prints; default: the clock.
  std::optional<absl::Time> now;
};

class ChatTemplate {
 public:
  // kInvalidArgument or kUnimplemented, with the line, for a template that cannot be rendered.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);
  // Reads chat_template.jinja, or "chat_template" in tokenizer_config.json, in a checkpoint's
  // folder. kNotFound without either.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& checkpoint_folder);
  ~ChatTemplate();

  // `messages` is an array of objects with a "role". kInvalidArgument when the template refuses
  // them (raise_exception) or cannot use them.
  absl::StatusOr<RenderedPrompt> Render(const Json& messages, const RenderOptions& options) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The tokens of a rendered prompt. Special tokens are recognised only where the template itself
// wrote them.
absl::StatusOr<std::vector<int32_t>> Tokenize(const Tokenizer& tokenizer,
                                              const RenderedPrompt& prompt);

}  // namespace apb::text
