// Renders a conversation with the checkpoint's own Jinja template, byte for byte as transformers
// does, and remembers which bytes came from the caller. The Jinja subset is described in README.md;
// anything else is an error when the template is loaded. Thread-safe.
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

// Keeps the order of keys: templates print tools and arguments as the client wrote them.
using Json = nlohmann::ordered_json;

// A piece of rendered text.
struct PromptSegment {
  std::string_view text;  // into RenderedPrompt::text
  bool from_user = false;
  // Which message it came from; -1: template text, tools or template arguments.
  int message_index = -1;
  // It is (a part of) the content of the message, not its role, name or tool calls.
  bool is_content = false;
};

struct RenderedPrompt {
  // Bytes that came from the request.
  struct UserSpan {
    ByteRange range;
    int message_index = -1;
    bool is_content = false;
  };
  // What one pass of a loop over the messages printed: the turn of that message.
  struct Turn {
    ByteRange range;
    int message_index = 0;
  };

  std::string text;
  std::vector<UserSpan> user_spans;  // ascending, disjoint
  std::vector<Turn> turns;           // in the order of their begin
  std::vector<std::string> roles;    // of all messages

  // The whole text, cut where the origin changes.
  std::vector<PromptSegment> Segments() const;
  // user_spans without their owners, for EncodeOptions::plain_ranges.
  std::vector<ByteRange> UserRanges() const;
};

struct RenderOptions {
  bool add_generation_prompt = true;
  // JSON array of tools, or null.
  Json tools = nullptr;
  // Extra variables of the template (chat_template_kwargs), an object or null.
  Json kwargs = nullptr;
  // Tokenizer::special_tokens(): bos_token, eos_token, ...; not from the user.
  std::map<std::string, std::string> special_tokens;
  // What strftime_now prints; default: the clock.
  std::optional<absl::Time> now;
};

class ChatTemplate {
 public:
  // InvalidArgument or Unimplemented with the line for a template we cannot render.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);
  // chat_template.jinja or the "chat_template" of tokenizer_config.json in a checkpoint's folder;
  // NotFound without.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& checkpoint_folder);
  ~ChatTemplate();

  // `messages`: an array of objects with a "role". InvalidArgument when the template refuses them
  // (raise_exception) or cannot use them.
  absl::StatusOr<RenderedPrompt> Render(const Json& messages, const RenderOptions& options) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Tokens of a rendered prompt: special tokens only where the template itself wrote them.
absl::StatusOr<std::vector<int32_t>> Tokenize(const Tokenizer& tokenizer,
                                              const RenderedPrompt& prompt);

}  // namespace apb::text
