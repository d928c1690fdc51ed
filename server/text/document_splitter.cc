// The border is a byte offset where possible; the tokens' offsets turn it into a token index. Where
// a number of tokens limits the query, the border is a token index from the start.
#include "server/text/document_splitter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::text {
namespace {

constexpr std::string_view kBlank = " \t\r\n\f\v";

std::string_view StripBlank(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

// The begin of the last paragraph: after the last empty line that has text after it. 0 if there is
// only one paragraph.
size_t LastParagraph(std::string_view text) {
  size_t end = text.find_last_not_of(kBlank);
  if (end == text.npos) return 0;
  while ((end = text.rfind('\n', end)) != text.npos && end > 0) {
    const size_t before = text.find_last_not_of(" \t\r", end - 1);
    if (before == text.npos) return 0;
    if (text[before] == '\n') return end + 1;
    end = before;
  }
  return 0;
}

// The tokens of a whole prompt, and where in its text they begin.
struct TokenizedText {
  std::string_view text;
  Encoding encoding;

  // The first token that begins at `byte` or later. A token across the border lies before it.
  int32_t TokenAt(size_t byte) const {
    const std::vector<uint32_t>& begins = encoding.begins;
    return static_cast<int32_t>(std::lower_bound(begins.begin(), begins.end(), byte) -
                                begins.begin());
  }
};

absl::StatusOr<TokenizedText> TokenizeChat(const Tokenizer& tokenizer, std::string_view text,
                                           std::span<const ByteRange> plain) {
  APB_ASSIGN_OR_RETURN(
      Encoding encoding,
      tokenizer.EncodeWithOffsets(
          text, {.add_special_tokens = false, .parse_special = true, .plain_ranges = plain}));
  return TokenizedText{text, std::move(encoding)};
}

// The tokens of a query's text as it stands inside an anchor block.
absl::StatusOr<std::vector<int32_t>> EmbedText(const Tokenizer& tokenizer, std::string_view query) {
  return tokenizer.Encode(StripBlank(query), {.add_special_tokens = false,
                                              .parse_special = false,
                                              .start = TextStart::kAfterSpecialToken});
}

absl::StatusOr<std::string_view> CheckQuery(const std::string& query) {
  const std::string_view stripped = StripBlank(query);
  if (stripped.empty()) return absl::InvalidArgumentError("apb.query is empty");
  return stripped;
}

absl::Status QueryNotFound() {
  return absl::InvalidArgumentError(
      "apb.query does not occur in the prompt; it must be a part of what was sent, word for word");
}

// The query is the last paragraph of text[content.begin, content.end), or its last tokens if the
// paragraph is too long. Everything after the content belongs to the query too. If there is only
// one paragraph, the query begins at byte `border_of_all`.
absl::StatusOr<PromptSplit> SplitByParagraph(const Tokenizer& tokenizer, const TokenizedText& whole,
                                             ByteRange content, size_t border_of_all) {
  const std::string_view text = whole.text.substr(content.begin, content.end - content.begin);
  const size_t paragraph = LastParagraph(text);
  const int32_t begin = whole.TokenAt(content.begin + paragraph), end = whole.TokenAt(content.end);
  PromptSplit split;
  if (end - begin <= kDefaultQueryTokens) {
    split.query_begin = paragraph == 0 ? whole.TokenAt(border_of_all) : begin;
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, text.substr(paragraph)));
    return split;
  }
  split.query_begin = end - kDefaultQueryTokens;
  const auto tokens = whole.encoding.ids.begin();
  split.embedded_query.assign(tokens + split.query_begin, tokens + end);
  return split;
}

// The places in a rendered chat that the split needs.
struct ChatLayout {
  int last_user = -1;     // index of the last user message that was rendered
  ByteRange content;      // all pieces of that message's content
  size_t turn_begin = 0;  // where that message's turn begins
  // Bytes of content in the user and system messages before it.
  size_t bytes_before = 0;
  // Where the first user content begins; else the first system content.
  size_t anchor_at = 0;

  explicit ChatLayout(const RenderedPrompt& prompt) {
    size_t first_user = SIZE_MAX, first_system = SIZE_MAX;
    for (const auto& span : prompt.user_spans) {
      const std::string* role = RoleOf(prompt, span);
      if (role == nullptr) continue;
      size_t& first = *role == "user" ? first_user : first_system;
      first = std::min(first, span.range.begin);
      if (*role == "user" && span.message_index >= last_user) {
        content.begin = span.message_index == last_user ? content.begin : span.range.begin;
        content.end = span.range.end;
        last_user = span.message_index;
      }
    }
    turn_begin = content.begin;
    for (const auto& turn : prompt.turns) {
      if (turn.message_index == last_user && turn.range.begin <= content.begin &&
          turn.range.end >= content.end) {
        turn_begin = turn.range.begin;
      }
    }
    size_t system_bytes = 0;
    for (const auto& span : prompt.user_spans) {
      const std::string* role = RoleOf(prompt, span);
      if (role == nullptr || span.range.end > content.begin) continue;
      bytes_before += span.range.end - span.range.begin;
      if (*role != "user") system_bytes += span.range.end - span.range.begin;
    }
    const bool document_is_system =
        HasEarlierDocument() && system_bytes > 0 && system_bytes * 2 > bytes_before;
    anchor_at = document_is_system || first_user == SIZE_MAX ? first_system : first_user;
    if (anchor_at == SIZE_MAX) anchor_at = 0;
  }

  // True if the user and system messages before the last user message hold more than it does.
  bool HasEarlierDocument() const { return bytes_before > content.end - content.begin; }

 private:
  // The role if the span is content of a user, system or developer message; else null.
  static const std::string* RoleOf(const RenderedPrompt& prompt,
                                   const RenderedPrompt::UserSpan& span) {
    if (!span.is_content || span.message_index < 0) return nullptr;
    const std::string& role = prompt.roles[span.message_index];
    return role == "user" || role == "system" || role == "developer" ? &role : nullptr;
  }
};

absl::StatusOr<PromptSplit> SplitChatByQuery(const Tokenizer& tokenizer, const TokenizedText& whole,
                                             const RenderedPrompt& prompt, const ChatLayout& layout,
                                             std::string_view query) {
  for (auto span = prompt.user_spans.rbegin(); span != prompt.user_spans.rend(); ++span) {
    if (!span->is_content) continue;
    const size_t at =
        whole.text.substr(span->range.begin, span->range.end - span->range.begin).rfind(query);
    if (at == std::string_view::npos) continue;
    size_t border = span->range.begin + at;
    // If a message holds nothing but the query, its header belongs to the query.
    if (border == layout.content.begin) border = layout.turn_begin;
    PromptSplit split;
    split.query_begin = whole.TokenAt(border);
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, query));
    return split;
  }
  return QueryNotFound();
}

// The index of the id in which the last occurrence of `query` in the ids' text begins.
absl::StatusOr<int32_t> FindQueryInTokens(const Tokenizer& tokenizer,
                                          const std::vector<int32_t>& tokens,
                                          std::string_view query) {
  std::string text;
  std::vector<size_t> begins;
  for (const int32_t id : tokens) {
    begins.push_back(text.size());
    text += tokenizer.TokenBytes(id);
  }
  const size_t at = text.rfind(query);
  if (at == std::string::npos) return QueryNotFound();
  return static_cast<int32_t>(std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() -
                              1);
}

// The tokens of the query up to the end of its turn, for the anchor blocks.
std::vector<int32_t> UntilEndOfTurn(const Tokenizer& tokenizer, std::span<const int32_t> query,
                                    const std::vector<int32_t>& end_of_turn_ids) {
  std::vector<int32_t> embedded;
  for (const int32_t id : query) {
    if (id == tokenizer.eos_id()) break;
    if (std::find(end_of_turn_ids.begin(), end_of_turn_ids.end(), id) != end_of_turn_ids.end())
      break;
    embedded.push_back(id);
  }
  return embedded;
}

absl::Status CheckIds(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokenizer.IsToken(tokens[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat("token id ", tokens[i], " at index ", i,
                                                   " is not in the vocabulary of ",
                                                   tokenizer.vocab_size()));
  }
  return absl::OkStatus();
}

// 1 if the ids begin with the begin token, else 0.
int32_t BosCount(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  return !tokens.empty() && tokens[0] == tokenizer.bos_id() ? 1 : 0;
}

void AppendSuffix(const Tokenizer& tokenizer, std::vector<int32_t>& tokens) {
  const std::vector<int32_t>& suffix = tokenizer.suffix_ids();
  tokens.insert(tokens.end(), suffix.begin(), suffix.end());
}

// The split of a context. The embedded query goes after the first `head` tokens.
absl::StatusOr<PromptSplit> WholeAsDocument(const Tokenizer& tokenizer, std::vector<int32_t> tokens,
                                            int32_t head, const std::optional<std::string>& query) {
  PromptSplit split;
  if (query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view stripped, CheckQuery(*query));
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, stripped));
  }
  split.query_begin = static_cast<int32_t>(std::max<size_t>(tokens.size(), 1)) - 1;
  split.query_insert_position = std::min(head, split.query_begin);
  split.tokens = std::move(tokens);
  return split;
}

}  // namespace

absl::StatusOr<PromptSplit> SplitChatPrompt(const Tokenizer& tokenizer,
                                            const RenderedPrompt& prompt,
                                            const std::optional<std::string>& query) {
  APB_ASSIGN_OR_RETURN(TokenizedText whole,
                       TokenizeChat(tokenizer, prompt.text, prompt.UserRanges()));
  const ChatLayout layout(prompt);
  PromptSplit split;
  if (query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view wanted, CheckQuery(*query));
    APB_ASSIGN_OR_RETURN(split, SplitChatByQuery(tokenizer, whole, prompt, layout, wanted));
  } else if (layout.HasEarlierDocument()) {
    split.query_begin = whole.TokenAt(layout.turn_begin);
    APB_ASSIGN_OR_RETURN(
        split.embedded_query,
        EmbedText(tokenizer, whole.text.substr(layout.content.begin,
                                               layout.content.end - layout.content.begin)));
  } else if (layout.last_user >= 0) {
    const size_t border = layout.bytes_before > 0 ? layout.turn_begin : 0;
    APB_ASSIGN_OR_RETURN(split, SplitByParagraph(tokenizer, whole, layout.content, border));
  }
  split.query_insert_position = std::min(whole.TokenAt(layout.anchor_at), split.query_begin);
  split.tokens = std::move(whole.encoding.ids);
  return split;
}

absl::StatusOr<PromptSplit> SplitPlainPrompt(const Tokenizer& tokenizer, std::string_view prompt,
                                             const PlainPromptOptions& options) {
  TokenizedText whole{.text = prompt};
  APB_ASSIGN_OR_RETURN(
      whole.encoding,
      tokenizer.EncodeWithOffsets(prompt, {.add_special_tokens = options.add_special_tokens,
                                           .parse_special = options.parse_special}));
  const auto begin_tokens =
      static_cast<int32_t>(options.add_special_tokens ? tokenizer.prefix_ids().size() : 0);
  PromptSplit split;
  if (options.query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view query, CheckQuery(*options.query));
    const size_t at = prompt.rfind(query);
    if (at == std::string_view::npos) return QueryNotFound();
    split.query_begin = whole.TokenAt(at);
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, query));
  } else {
    APB_ASSIGN_OR_RETURN(split, SplitByParagraph(tokenizer, whole, {0, prompt.size()}, 0));
    const int32_t begin = std::max(split.query_begin, begin_tokens);
    split.embedded_query = UntilEndOfTurn(tokenizer, std::span(whole.encoding.ids).subspan(begin),
                                          options.end_of_turn_ids);
  }
  // With only the begin tokens before the query there is no document.
  if (split.query_begin <= begin_tokens) split.query_begin = 0;
  split.query_insert_position = std::min(begin_tokens, split.query_begin);
  split.tokens = std::move(whole.encoding.ids);
  return split;
}

absl::StatusOr<PromptSplit> SplitTokenPrompt(const Tokenizer& tokenizer,
                                             std::vector<int32_t> tokens,
                                             const PlainPromptOptions& options) {
  APB_RETURN_IF_ERROR(CheckIds(tokenizer, tokens));
  PromptSplit split;
  if (options.query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view query, CheckQuery(*options.query));
    APB_ASSIGN_OR_RETURN(split.query_begin, FindQueryInTokens(tokenizer, tokens, query));
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, query));
  } else {
    split.query_begin =
        std::max<int32_t>(static_cast<int32_t>(tokens.size()) - kDefaultQueryTokens, 0);
    split.embedded_query = UntilEndOfTurn(tokenizer, std::span(tokens).subspan(split.query_begin),
                                          options.end_of_turn_ids);
  }
  split.query_insert_position = std::min<int32_t>(BosCount(tokenizer, tokens), split.query_begin);
  split.tokens = std::move(tokens);
  return split;
}

absl::StatusOr<ContextText> TextOfChatContext(const RenderedPrompt& prompt) {
  const int last = static_cast<int>(prompt.roles.size()) - 1;
  size_t end = 0;
  for (const auto& span : prompt.user_spans) {
    if (span.is_content && span.message_index == last) end = std::max(end, span.range.end);
  }
  if (end == 0) {
    return absl::InvalidArgumentError(
        "the chat template does not print the last message's content as it is (is it empty?)");
  }
  ContextText context{.text = prompt.text.substr(0, end), .plain = prompt.UserRanges()};
  std::erase_if(context.plain, [end](const ByteRange& range) { return range.begin >= end; });
  return context;
}

absl::StatusOr<PromptSplit> SplitChatContext(const Tokenizer& tokenizer,
                                             const RenderedPrompt& prompt, const ContextText& text,
                                             const std::optional<std::string>& query) {
  APB_ASSIGN_OR_RETURN(TokenizedText whole, TokenizeChat(tokenizer, text.text, text.plain));
  const int32_t head = whole.TokenAt(ChatLayout(prompt).anchor_at);
  return WholeAsDocument(tokenizer, std::move(whole.encoding.ids), head, query);
}

absl::StatusOr<PromptSplit> SplitPlainContext(const Tokenizer& tokenizer, const ContextText& text,
                                              const std::optional<std::string>& query) {
  APB_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                       TokenizeBehind(tokenizer, text, "", /*add_special_tokens=*/false));
  const size_t head = text.add_special_tokens ? tokenizer.prefix_ids().size() : 0;
  return WholeAsDocument(tokenizer, std::move(tokens), static_cast<int32_t>(head), query);
}

absl::StatusOr<PromptSplit> SplitTokenContext(const Tokenizer& tokenizer,
                                              std::vector<int32_t> tokens,
                                              const std::optional<std::string>& query) {
  APB_RETURN_IF_ERROR(CheckIds(tokenizer, tokens));
  const int32_t head = BosCount(tokenizer, tokens);
  return WholeAsDocument(tokenizer, std::move(tokens), head, query);
}

PromptSplit GoOnFromContext(const PromptSplit& context, std::vector<int32_t> tokens) {
  PromptSplit split = context;
  const auto last = static_cast<int32_t>(std::max<size_t>(tokens.size(), 1)) - 1;
  split.query_begin = std::min(split.query_begin, last);
  split.query_insert_position = std::min(split.query_insert_position, split.query_begin);
  split.tokens = std::move(tokens);
  return split;
}

absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    const ContextText& context,
                                                    std::string_view more,
                                                    bool add_special_tokens) {
  std::string text = context.text;
  text += more;
  APB_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                       tokenizer.Encode(text, {.add_special_tokens = false,
                                               .parse_special = true,
                                               .plain_ranges = context.plain}));
  if (context.add_special_tokens) {
    const std::vector<int32_t>& prefix = tokenizer.prefix_ids();
    tokens.insert(tokens.begin(), prefix.begin(), prefix.end());
  }
  if (add_special_tokens) AppendSuffix(tokenizer, tokens);
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> TokenizeBehind(const Tokenizer& tokenizer,
                                                    std::vector<int32_t> context,
                                                    std::string_view more,
                                                    bool add_special_tokens) {
  const bool after_special = context.empty() || tokenizer.IsAdded(context.back());
  const TextStart start = after_special ? TextStart::kAfterSpecialToken : TextStart::kMidText;
  APB_ASSIGN_OR_RETURN(
      const std::vector<int32_t> ids,
      tokenizer.Encode(more, {.add_special_tokens = false, .parse_special = true, .start = start}));
  context.insert(context.end(), ids.begin(), ids.end());
  if (add_special_tokens) AppendSuffix(tokenizer, context);
  return context;
}

}  // namespace apb::text
