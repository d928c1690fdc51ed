// Finds where the query of a prompt begins, and which tokens of it APB puts into the anchor blocks.
// A prompt is always tokenized as a whole, so its tokens are the model's own; a token that lies
// across the border belongs to the document. This holds for contexts too: a context (a prompt that
// is computed once and continued later) is tokenized together with the text that follows it. Pure
// functions.
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
  // tokens[query_begin ..) is the query and everything after it. 0 means that there is no document.
  // Equal to tokens.size() when the last token lies across the border: then all tokens belong to
  // the document.
  int32_t query_begin = 0;
  // An anchor block holds the embedded query after this many tokens of the document: where the
  // content of the first user message begins (of the first system message, if that is the
  // document), or after BOS.
  int32_t query_insert_position = 0;
  // The query's text, without template tokens.
  std::vector<int32_t> embedded_query;
};

// The query is the last paragraph or this many tokens, whichever is shorter, unless the caller
// names the query or earlier messages hold the document.
inline constexpr int32_t kDefaultQueryTokens = 256;

// Splits a rendered conversation. With `query`, the query begins at its last occurrence in the
// caller's text; kInvalidArgument if there is none. Otherwise the query begins with the turn of the
// last user message, if the user and system messages before it are longer than it; else it begins
// at that message's last paragraph.
absl::StatusOr<PromptSplit> SplitChatPrompt(const Tokenizer& tokenizer,
                                            const RenderedPrompt& prompt,
                                            const std::optional<std::string>& query);

struct PlainPromptOptions {
  bool add_special_tokens = true;
  bool parse_special = true;
  std::optional<std::string> query;
  // The embedded query ends before the first of these tokens, and before the tokenizer's eos.
  std::vector<int32_t> end_of_turn_ids;
};

// Splits a text prompt. kInvalidArgument if `query` does not occur in it.
absl::StatusOr<PromptSplit> SplitPlainPrompt(const Tokenizer& tokenizer, std::string_view prompt,
                                             const PlainPromptOptions& options);

// Splits a prompt of token ids. The query is the last kDefaultQueryTokens; or, when `query` is
// given, the ids from its last occurrence to the end. kInvalidArgument for an id outside the
// vocabulary, or when `query` does not occur.
absl::StatusOr<PromptSplit> SplitTokenPrompt(const Tokenizer& tokenizer,
                                             std::vector<int32_t> tokens,
                                             const PlainPromptOptions& options);

// The text of a context, which later prompts continue.
struct ContextText {
  std::string text;
  // Where no special tokens are recognised; ascending and disjoint.
  std::vector<ByteRange> plain;
  // Whether the tokenizer's begin tokens come before it.
  bool add_special_tokens = false;
};

// The rendered conversation up to the end of its last message's content. So either more text of the
// same message or another message can follow. kInvalidArgument if the template changes that
// content.
absl::StatusOr<ContextText> TextOfChatContext(const RenderedPrompt& prompt);

// These split a context's prompt: all tokens but the last are the document. `query` is a guess of
// what will be asked, for the anchor blocks; it need not occur. A conversation is cut as
// TextOfChatContext says.
absl::StatusOr<PromptSplit> SplitChatContext(const Tokenizer& tokenizer,
                                             const RenderedPrompt& prompt, const ContextText& text,
                                             const std::optional<std::string>& query);
absl::StatusOr<PromptSplit> SplitPlainContext(const Tokenizer& tokenizer, const ContextText& text,
                                              const std::optional<std::string>& query);
absl::StatusOr<PromptSplit> SplitTokenContext(const Tokenizer& tokenizer,
                                              std::vector<int32_t> tokens,
                                              const std::optional<std::string>& query);

// Splits a prompt that continues a context and is given by all of its tokens. It gets the context's
// document and embedded query. The context's last tokens may be missing from it, because the text
// that follows may change how the context's end is tokenized.
PromptSplit GoOnFromContext(const PromptSplit& context, std::vector<int32_t> tokens);
// The tokens of a context's text followed by `more`, in which special tokens are recognised.
// `add_special_tokens`: append the tokenizer's end tokens.
absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    const ContextText& context,
                                                    std::string_view more, bool add_special_tokens);
// For a context that was made of ids, whose text is unknown: the tokens of `more` alone follow the
// ids.
absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    std::vector<int32_t> context,
                                                    std::string_view more, bool add_special_tokens);

}  // namespace apb::text
