// Where the query of a prompt begins, and what of it APB puts into the anchors. A prompt is always
// tokenized as a whole, so that its tokens are the model's own; a token that lies across the border
// belongs to the document. Contexts, beginnings of prompts that are computed once, are no
// exception: what follows one is tokenized together with it. Pure functions.
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
  // tokens[query_begin ..) is the query with everything after it. 0: there is no document. All of
  // them are document where the last one lies across the border.
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

// The text of a context, for the prompts that go on from it.
struct ContextText {
  std::string text;
  std::vector<ByteRange> plain;     // where no special tokens are recognised; ascending, disjoint
  bool add_special_tokens = false;  // whether the tokenizer's begin tokens stand before it
};

// The rendered conversation up to the end of its last message's content, so that more of the same
// message can follow as well as another. InvalidArgument where the template changes that content.
absl::StatusOr<ContextText> TextOfChatContext(const RenderedPrompt& prompt);

// A context's prompt: all but its last token is document. `query` is a guess of what will be asked,
// for the anchors; it need not occur. A conversation is cut as TextOfChatContext says.
absl::StatusOr<PromptSplit> SplitChatContext(const Tokenizer& tokenizer,
                                             const RenderedPrompt& prompt, const ContextText& text,
                                             const std::optional<std::string>& query);
absl::StatusOr<PromptSplit> SplitPlainContext(const Tokenizer& tokenizer, const ContextText& text,
                                              const std::optional<std::string>& query);
absl::StatusOr<PromptSplit> SplitTokenContext(const Tokenizer& tokenizer,
                                              std::vector<int32_t> tokens,
                                              const std::optional<std::string>& query);

// A prompt that goes on from a context, given by all of its tokens, has the context's document and
// embedded query. The last tokens of the context need not be among them: what follows may change
// how its end is tokenized.
PromptSplit GoOnFromContext(const PromptSplit& context, std::vector<int32_t> tokens);
// The tokens of a context's text with more text behind it, in which special tokens are recognised;
// `add_special_tokens`: with the tokenizer's end tokens.
absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    const ContextText& context,
                                                    std::string_view more, bool add_special_tokens);
// Where a context was made of ids there is no text of the whole: the tokens of `more` alone follow
// the ids.
absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    std::vector<int32_t> context,
                                                    std::string_view more, bool add_special_tokens);

}  // namespace apb::text
