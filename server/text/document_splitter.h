// Where the query of a prompt begins, and what of it APB puts into the anchors. Document and query
// are tokenized apart, so that no token lies across the border. The same for contexts: beginnings of
// prompts that are computed once, and what follows them. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/text/chat_template.h"
#include "server/text/tokenizer.h"

namespace apb::text {

struct PromptSplit {
  std::vector<int32_t> tokens;
  // tokens[query_begin ..) is the query with everything after it. 0: there is no document.
  int32_t query_begin = 0;
  // Anchors put the embedded query after this many tokens of the document: at the beginning of the
  // first user message's content (of the first system message's where that one is the document), or
  // after BOS.
  int32_t query_insert_position = 0;
  // The text of the query without template tokens.
  std::vector<int32_t> embedded_query;
};

// Without an explicit query and without earlier messages that hold the document, the query is the
// last paragraph or this many tokens, whichever is shorter.
inline constexpr int32_t kDefaultQueryTokens = 256;

// A rendered conversation. With `query`: the query begins at its last occurrence in what the caller
// wrote; InvalidArgument when there is none. Without: at the turn of the last user message if the
// user and system messages before it are longer than it; else at its last paragraph.
absl::StatusOr<PromptSplit> SplitChatPrompt(const Tokenizer& tokenizer,
                                            const RenderedPrompt& prompt,
                                            const std::optional<std::string>& query);

struct PlainPromptOptions {
  bool add_special_tokens = true;
  bool parse_special = true;
  std::optional<std::string> query;
  // The embedded query ends before the first of these, and before the tokenizer's eos.
  std::vector<int32_t> end_of_turn_ids;
};

absl::StatusOr<PromptSplit> SplitPlainPrompt(const Tokenizer& tokenizer, std::string_view prompt,
                                             const PlainPromptOptions& options);

// A prompt of token ids: the last kDefaultQueryTokens are the query, or, when the text of `query`
// is given, as many ids at the end as hold its last occurrence. InvalidArgument for an id outside
// the vocabulary.
absl::StatusOr<PromptSplit> SplitTokenPrompt(const Tokenizer& tokenizer,
                                             std::vector<int32_t> tokens,
                                             const PlainPromptOptions& options);

// A context's prompt: all but its last token is document. `query` is a guess of what will be asked,
// for the anchors; it need not occur.

// Of a conversation, `text` is what ContextText gives.
absl::StatusOr<PromptSplit> SplitChatContext(const Tokenizer& tokenizer,
                                             const RenderedPrompt& prompt, std::string_view text,
                                             const std::optional<std::string>& query);
absl::StatusOr<PromptSplit> SplitPlainContext(const Tokenizer& tokenizer, std::string_view prompt,
                                              const PlainPromptOptions& options);
absl::StatusOr<PromptSplit> SplitTokenContext(const Tokenizer& tokenizer,
                                              std::vector<int32_t> tokens,
                                              const PlainPromptOptions& options);

// The rendered conversation up to the end of its last message's content, so that more of the same
// message can follow as well as another. InvalidArgument where the template changes that content.
absl::StatusOr<std::string_view> ContextText(const RenderedPrompt& prompt);

// What follows is tokenized apart from the context and appended to the context's `tokens`. Of a
// conversation, all of it is rendered, and it begins with the context's text of `context_bytes`.
absl::Status AppendChat(const Tokenizer& tokenizer, const RenderedPrompt& prompt,
                        size_t context_bytes, std::vector<int32_t>& tokens);
absl::Status AppendPlain(const Tokenizer& tokenizer, std::string_view prompt,
                         const PlainPromptOptions& options, std::vector<int32_t>& tokens);

}  // namespace apb::text
