// The border is a byte offset where it can be, and both sides are tokenized apart; where only a
// number of tokens limits the query it is an index into the tokens of the whole.
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

// Begin of the last paragraph: behind the last empty line that has text behind it. 0: there is one
// paragraph only.
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

// For text that follows these tokens.
TextStart StartBehind(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  const bool after_special = tokens.empty() || tokenizer.IsAdded(tokens.back());
  return after_special ? TextStart::kAfterSpecialToken : TextStart::kMidText;
}

// Text, and how a part of it is encoded.
class PartEncoder {
 public:
  // `plain`: where no special tokens are recognised; ascending, disjoint.
  PartEncoder(const Tokenizer& tokenizer, std::string_view text, bool parse_special,
              std::vector<ByteRange> plain)
      : tokenizer_(tokenizer),
        text_(text),
        parse_special_(parse_special),
        plain_(std::move(plain)) {}

  // Appends the tokens of text[begin, end) to `tokens`, which are those of what stands before.
  absl::Status Append(size_t begin, size_t end, std::vector<int32_t>& tokens) const {
    std::vector<ByteRange> plain;
    for (const ByteRange& range : plain_) {
      const size_t from = std::max(range.begin, begin), to = std::min(range.end, end);
      if (from < to) plain.push_back({from - begin, to - begin});
    }
    EncodeOptions options{
        .add_special_tokens = false, .parse_special = parse_special_, .plain_ranges = plain};
    if (begin > 0) options.start = StartBehind(tokenizer_, tokens);
    APB_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         tokenizer_.Encode(text_.substr(begin, end - begin), options));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Count(size_t begin, size_t end) const {
    std::vector<int32_t> tokens;
    APB_RETURN_IF_ERROR(Append(begin, end, tokens));
    return static_cast<int64_t>(tokens.size());
  }

  std::string_view text() const { return text_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  const Tokenizer& tokenizer_;
  std::string_view text_;
  bool parse_special_;
  std::vector<ByteRange> plain_;
};

// Tokens of a query's text, as it stands inside an anchor.
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

// The text with the border at byte `border`; the document begins with `prefix`.
absl::StatusOr<PromptSplit> SplitAt(const PartEncoder& encoder, size_t border,
                                    std::vector<int32_t> prefix) {
  PromptSplit split;
  split.tokens = std::move(prefix);
  APB_RETURN_IF_ERROR(encoder.Append(0, border, split.tokens));
  split.query_begin = static_cast<int32_t>(split.tokens.size());
  APB_RETURN_IF_ERROR(encoder.Append(border, encoder.text().size(), split.tokens));
  return split;
}

// The query is the last paragraph of text[content.begin, content.end), or its last tokens where
// that one is longer; all after it belongs to the query.
absl::StatusOr<PromptSplit> SplitByParagraph(const PartEncoder& encoder, ByteRange content,
                                             size_t border_of_all, std::vector<int32_t> prefix) {
  const std::string_view text = encoder.text();
  const size_t paragraph = LastParagraph(text.substr(content.begin, content.end - content.begin));
  const size_t begin = content.begin + paragraph;
  APB_ASSIGN_OR_RETURN(const int64_t length, encoder.Count(begin, content.end));
  if (length <= kDefaultQueryTokens) {
    APB_ASSIGN_OR_RETURN(PromptSplit split, SplitAt(encoder, paragraph == 0 ? border_of_all : begin,
                                                    std::move(prefix)));
    APB_ASSIGN_OR_RETURN(split.embedded_query,
                         EmbedText(encoder.tokenizer(), text.substr(begin, content.end - begin)));
    return split;
  }
  PromptSplit split;
  split.tokens = std::move(prefix);
  APB_RETURN_IF_ERROR(encoder.Append(0, text.size(), split.tokens));
  APB_ASSIGN_OR_RETURN(const int64_t behind, encoder.Count(content.end, text.size()));
  const int64_t end = std::max<int64_t>(static_cast<int64_t>(split.tokens.size()) - behind, 0);
  const int64_t from = std::max<int64_t>(end - kDefaultQueryTokens, 0);
  split.query_begin = static_cast<int32_t>(from);
  split.embedded_query.assign(split.tokens.begin() + from, split.tokens.begin() + end);
  return split;
}

// What of a rendered chat the split needs to know.
struct ChatLayout {
  int last_user = -1;       // the last user message that was rendered
  ByteRange content;        // of it, all of its content's pieces
  size_t turn_begin = 0;    // of it
  size_t bytes_before = 0;  // of the content of user and system messages before it
  size_t anchor_at = 0;     // begin of the first user content, else of the first system content

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

  // The messages before the last question hold more than it does.
  bool HasEarlierDocument() const { return bytes_before > content.end - content.begin; }

 private:
  // Null unless the span is content of a user's or the system's message.
  static const std::string* RoleOf(const RenderedPrompt& prompt,
                                   const RenderedPrompt::UserSpan& span) {
    if (!span.is_content || span.message_index < 0) return nullptr;
    const std::string& role = prompt.roles[span.message_index];
    return role == "user" || role == "system" || role == "developer" ? &role : nullptr;
  }
};

absl::StatusOr<PromptSplit> SplitChatByQuery(const PartEncoder& encoder,
                                             const RenderedPrompt& prompt, const ChatLayout& layout,
                                             std::string_view query) {
  for (auto span = prompt.user_spans.rbegin(); span != prompt.user_spans.rend(); ++span) {
    if (!span->is_content) continue;
    const size_t at =
        encoder.text().substr(span->range.begin, span->range.end - span->range.begin).rfind(query);
    if (at == std::string_view::npos) continue;
    size_t border = span->range.begin + at;
    // The header of a message that is nothing but the query belongs to it.
    if (border == layout.content.begin) border = layout.turn_begin;
    APB_ASSIGN_OR_RETURN(PromptSplit split, SplitAt(encoder, border, {}));
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(encoder.tokenizer(), query));
    return split;
  }
  return QueryNotFound();
}

// The last occurrence of `query` in the ids' text, as an index of the id where it begins.
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

// The embedded query ends where the turn does.
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

// The begin token of a prompt of ids, if it has one.
int32_t BosCount(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  return !tokens.empty() && tokens[0] == tokenizer.bos_id() ? 1 : 0;
}

// The split of a context: what stands behind `head` tokens is the document's own text.
absl::StatusOr<PromptSplit> WholeAsDocument(const Tokenizer& tokenizer, std::vector<int32_t> tokens,
                                            int64_t head, const std::optional<std::string>& query) {
  PromptSplit split;
  if (query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view stripped, CheckQuery(*query));
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, stripped));
  }
  split.query_begin = static_cast<int32_t>(std::max<size_t>(tokens.size(), 1)) - 1;
  split.query_insert_position = static_cast<int32_t>(std::min<int64_t>(head, split.query_begin));
  split.tokens = std::move(tokens);
  return split;
}

}  // namespace

absl::StatusOr<PromptSplit> SplitChatPrompt(const Tokenizer& tokenizer,
                                            const RenderedPrompt& prompt,
                                            const std::optional<std::string>& query) {
  const PartEncoder encoder(tokenizer, prompt.text, /*parse_special=*/true, prompt.UserRanges());
  const ChatLayout layout(prompt);
  PromptSplit split;
  if (query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view wanted, CheckQuery(*query));
    APB_ASSIGN_OR_RETURN(split, SplitChatByQuery(encoder, prompt, layout, wanted));
  } else if (layout.last_user < 0) {
    APB_ASSIGN_OR_RETURN(split, SplitAt(encoder, 0, {}));
  } else if (layout.HasEarlierDocument()) {
    APB_ASSIGN_OR_RETURN(split, SplitAt(encoder, layout.turn_begin, {}));
    APB_ASSIGN_OR_RETURN(
        split.embedded_query,
        EmbedText(tokenizer, encoder.text().substr(layout.content.begin,
                                                   layout.content.end - layout.content.begin)));
  } else {
    const size_t border = layout.bytes_before > 0 ? layout.turn_begin : 0;
    APB_ASSIGN_OR_RETURN(split, SplitByParagraph(encoder, layout.content, border, {}));
  }
  APB_ASSIGN_OR_RETURN(const int64_t head, encoder.Count(0, layout.anchor_at));
  split.query_insert_position = static_cast<int32_t>(std::min<int64_t>(head, split.query_begin));
  return split;
}

absl::StatusOr<PromptSplit> SplitPlainPrompt(const Tokenizer& tokenizer, std::string_view prompt,
                                             const PlainPromptOptions& options) {
  const PartEncoder encoder(tokenizer, prompt, options.parse_special, {});
  std::vector<int32_t> prefix;
  if (options.add_special_tokens) prefix = tokenizer.prefix_ids();
  const size_t prefix_size = prefix.size();
  PromptSplit split;
  if (options.query.has_value()) {
    APB_ASSIGN_OR_RETURN(const std::string_view query, CheckQuery(*options.query));
    const size_t at = prompt.rfind(query);
    if (at == std::string_view::npos) return QueryNotFound();
    APB_ASSIGN_OR_RETURN(split, SplitAt(encoder, at, std::move(prefix)));
    APB_ASSIGN_OR_RETURN(split.embedded_query, EmbedText(tokenizer, query));
  } else {
    APB_ASSIGN_OR_RETURN(split,
                         SplitByParagraph(encoder, {0, prompt.size()}, 0, std::move(prefix)));
    split.embedded_query = UntilEndOfTurn(
        tokenizer, std::span(split.tokens).subspan(split.query_begin), options.end_of_turn_ids);
  }
  if (options.add_special_tokens) {
    const auto& suffix = tokenizer.suffix_ids();
    split.tokens.insert(split.tokens.end(), suffix.begin(), suffix.end());
  }
  // Only the begin token stands before the query: there is no document.
  if (split.query_begin <= static_cast<int32_t>(prefix_size)) split.query_begin = 0;
  split.query_insert_position =
      std::min<int32_t>(static_cast<int32_t>(prefix_size), split.query_begin);
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

absl::StatusOr<std::string_view> ContextText(const RenderedPrompt& prompt) {
  const int last = static_cast<int>(prompt.roles.size()) - 1;
  size_t end = 0;
  for (const auto& span : prompt.user_spans) {
    if (span.is_content && span.message_index == last) end = std::max(end, span.range.end);
  }
  if (end > 0) return std::string_view(prompt.text).substr(0, end);
  return absl::InvalidArgumentError(
      "the chat template does not print the last message's content as it is (is it empty?)");
}

absl::StatusOr<PromptSplit> SplitChatContext(const Tokenizer& tokenizer,
                                             const RenderedPrompt& prompt, std::string_view text,
                                             const std::optional<std::string>& query) {
  const PartEncoder encoder(tokenizer, prompt.text, /*parse_special=*/true, prompt.UserRanges());
  std::vector<int32_t> tokens;
  APB_RETURN_IF_ERROR(encoder.Append(0, text.size(), tokens));
  APB_ASSIGN_OR_RETURN(const int64_t head, encoder.Count(0, ChatLayout(prompt).anchor_at));
  return WholeAsDocument(tokenizer, std::move(tokens), head, query);
}

absl::StatusOr<PromptSplit> SplitPlainContext(const Tokenizer& tokenizer, std::string_view prompt,
                                              const PlainPromptOptions& options) {
  const PartEncoder encoder(tokenizer, prompt, options.parse_special, {});
  std::vector<int32_t> tokens;
  if (options.add_special_tokens) tokens = tokenizer.prefix_ids();
  const int64_t head = static_cast<int64_t>(tokens.size());
  APB_RETURN_IF_ERROR(encoder.Append(0, prompt.size(), tokens));
  return WholeAsDocument(tokenizer, std::move(tokens), head, options.query);
}

absl::StatusOr<PromptSplit> SplitTokenContext(const Tokenizer& tokenizer,
                                              std::vector<int32_t> tokens,
                                              const PlainPromptOptions& options) {
  APB_RETURN_IF_ERROR(CheckIds(tokenizer, tokens));
  const int64_t head = BosCount(tokenizer, tokens);
  return WholeAsDocument(tokenizer, std::move(tokens), head, options.query);
}

absl::Status AppendChat(const Tokenizer& tokenizer, const RenderedPrompt& prompt,
                        size_t context_bytes, std::vector<int32_t>& tokens) {
  const PartEncoder encoder(tokenizer, prompt.text, /*parse_special=*/true, prompt.UserRanges());
  return encoder.Append(context_bytes, prompt.text.size(), tokens);
}

absl::Status AppendPlain(const Tokenizer& tokenizer, std::string_view prompt,
                         const PlainPromptOptions& options, std::vector<int32_t>& tokens) {
  APB_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                       tokenizer.Encode(prompt, {.add_special_tokens = false,
                                                 .parse_special = options.parse_special,
                                                 .start = StartBehind(tokenizer, tokens)}));
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  if (options.add_special_tokens) {
    const auto& suffix = tokenizer.suffix_ids();
    tokens.insert(tokens.end(), suffix.begin(), suffix.end());
  }
  return absl::OkStatus();
}

}  // namespace apb::text
