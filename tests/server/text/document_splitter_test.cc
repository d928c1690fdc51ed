// Goal: the border between document and query lies where document_splitter.h says, and the tokens
// are those of the whole text. Method: the demo checkpoint's tokenizer and chat template; the
// tokens' bytes give the border's place among them. A tokenizer made for the purpose has tokens
// across borders.
#include "server/text/document_splitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace apb::text {
namespace {

using ::testing::HasSubstr;

constexpr char kCheckpoint[] = APB_SOURCE_DIR "/tests/reference_model/checkpoint";

std::string Words(int count, const std::string& word = "word") {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i > 0 ? " " : "") + word + std::to_string(i % 10);
  return text;
}

class DocumentSplitterTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Ids(std::string_view text) {
    return *tokenizer_->Encode(text, {.add_special_tokens = false, .parse_special = true});
  }
  std::string TextOf(std::span<const int32_t> ids) {
    return *tokenizer_->Decode(ids, /*skip_special=*/false);
  }
  absl::StatusOr<PromptSplit> Chat(const std::vector<Json>& messages,
                                   const std::optional<std::string>& query = std::nullopt) {
    auto prompt =
        template_->Render(Json(messages), {.special_tokens = tokenizer_->special_tokens()});
    EXPECT_TRUE(prompt.ok()) << prompt.status();
    if (!prompt.ok()) return prompt.status();
    rendered_ = *prompt;
    return SplitChatPrompt(*tokenizer_, rendered_, query);
  }
  // The first of these tokens that begins at `byte` of their text or later.
  int32_t TokenAt(const std::vector<int32_t>& ids, size_t byte) {
    size_t begin = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (begin >= byte) return static_cast<int32_t>(i);
      begin += tokenizer_->TokenBytes(ids[i]).size();
    }
    return static_cast<int32_t>(ids.size());
  }
  // The query of the rendered chat begins with the last `query`, and the tokens are those of the
  // whole text.
  void ExpectBorder(const absl::StatusOr<PromptSplit>& split, std::string_view query) {
    ASSERT_TRUE(split.ok()) << split.status();
    const size_t border = rendered_.text.rfind(query);
    ASSERT_NE(border, std::string::npos) << query;
    EXPECT_EQ(split->tokens, Ids(rendered_.text));
    EXPECT_EQ(split->query_begin, TokenAt(split->tokens, border));
  }

  std::unique_ptr<Tokenizer> tokenizer_ =
      *Tokenizer::Load(std::string(kCheckpoint) + "/tokenizer.json");
  std::unique_ptr<ChatTemplate> template_ = *ChatTemplate::Load(kCheckpoint);
  RenderedPrompt rendered_;
  // <|begin|><|user|>\n
  const int32_t user_header_ = static_cast<int32_t>(Ids("<|begin|><|user|>\n").size());
};

Json Message(const char* role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

// A context has the tokens of its own text. A prompt that continues it has the tokens of the whole
// text: nearly all of the context's, then its own.
TEST_F(DocumentSplitterTest, ContextsAndWhatFollows) {
  const std::string document = Words(50) + " the end", question = "Which one is it?";
  const RenderOptions with_prompt{.special_tokens = tokenizer_->special_tokens()};
  RenderOptions without = with_prompt;
  without.add_generation_prompt = false;
  const Json rules = Message("system", "Be brief.");
  for (const auto& [context, whole] :
       {std::pair(Json({Message("user", document)}),
                  Json({Message("user", document + "\n\n" + question)})),
        std::pair(Json({Message("user", document)}),
                  Json({Message("user", document), Message("assistant", "Read."),
                        Message("user", question)})),
        std::pair(Json({rules, Message("user", document)}),
                  Json({rules, Message("user", document + "\n\n" + question)})),
        std::pair(Json({Message("system", document)}),
                  Json({Message("system", document), Message("user", question)}))}) {
    const RenderedPrompt rendered = *template_->Render(context, without);
    const ContextText cut = *TextOfChatContext(rendered);
    const std::string_view text = cut.text;
    EXPECT_TRUE(text.ends_with("the end"));
    const auto split = SplitChatContext(*tokenizer_, rendered, cut, "  Which one?\n");
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_EQ(split->tokens, Ids(text));
    EXPECT_EQ(split->query_begin, static_cast<int32_t>(split->tokens.size()) - 1);
    EXPECT_EQ(split->embedded_query, Ids("Which one?"));
    const std::string head = TextOf(std::span(split->tokens).first(split->query_insert_position));
    EXPECT_TRUE(text.substr(head.size()).starts_with(document)) << head;

    const RenderedPrompt all = *template_->Render(whole, with_prompt);
    ASSERT_TRUE(all.text.starts_with(text));
    const PromptSplit next = GoOnFromContext(*split, *Tokenize(*tokenizer_, all));
    EXPECT_EQ(next.tokens, Ids(all.text));
    EXPECT_GE(std::ranges::mismatch(next.tokens, split->tokens).in2 - split->tokens.begin(),
              static_cast<int64_t>(split->tokens.size()) - 1);
    EXPECT_EQ(next.query_begin, split->query_begin);
    EXPECT_EQ(next.query_insert_position, split->query_insert_position);
    EXPECT_EQ(next.embedded_query, split->embedded_query);
  }
}

TEST_F(DocumentSplitterTest, ContextsOfPlainText) {
  const ContextText context{.text = "<|user|>\nOne tw", .add_special_tokens = true};
  const auto split = SplitPlainContext(*tokenizer_, context, std::nullopt);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, *tokenizer_->Encode(context.text, {.parse_special = true}));
  const int32_t bos = static_cast<int32_t>(tokenizer_->prefix_ids().size());
  EXPECT_EQ(split->query_insert_position, bos);
  EXPECT_TRUE(split->embedded_query.empty());
  const auto tokens = TokenizeBehind(*tokenizer_, context, "o three<|end|>", true);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*tokens,
            *tokenizer_->Encode("<|user|>\nOne two three<|end|>", {.parse_special = true}));

  const auto same = SplitTokenContext(*tokenizer_, split->tokens, std::nullopt);
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(same->tokens, split->tokens);
  EXPECT_EQ(same->query_begin, split->query_begin);
  // The whole has no text that could be tokenized.
  std::vector<int32_t> expected = split->tokens;
  for (const int32_t id : Ids("o three<|end|>")) expected.push_back(id);
  EXPECT_EQ(*TokenizeBehind(*tokenizer_, split->tokens, "o three<|end|>", true), expected);
}

// The whole may have fewer tokens than the context at its beginning.
TEST_F(DocumentSplitterTest, WhatGoesOnFromAContextMayBeShorter) {
  const PromptSplit context{.tokens = {1, 2, 3, 4}, .query_begin = 3, .query_insert_position = 3};
  const PromptSplit split = GoOnFromContext(context, {1, 9});
  EXPECT_EQ(split.tokens, (std::vector<int32_t>{1, 9}));
  EXPECT_EQ(split.query_begin, 1);
  EXPECT_EQ(split.query_insert_position, 1);
  EXPECT_EQ(GoOnFromContext(context, {}).query_begin, 0);
}

// Text that a user writes holds no special tokens, in a context as anywhere else.
TEST_F(DocumentSplitterTest, NoSpecialTokensFromWithinAContext) {
  RenderOptions options{.add_generation_prompt = false,
                        .special_tokens = tokenizer_->special_tokens()};
  const RenderedPrompt rendered =
      *template_->Render(Json({Message("user", "a <|end|> b")}), options);
  const ContextText text = *TextOfChatContext(rendered);
  const auto split = SplitChatContext(*tokenizer_, rendered, text, std::nullopt);
  ASSERT_TRUE(split.ok());
  // Neither does a half of one that a completion ends; but a whole one in the completion counts.
  const ContextText half{.text = "a <|en", .plain = {{0, 6}}};
  const std::vector<int32_t> tokens = *TokenizeBehind(*tokenizer_, half, "d|> b<|end|>", false);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), *tokenizer_->TokenId("<|end|>")), 1);
  EXPECT_EQ(TextOf(tokens), "a <|end|> b<|end|>");
  EXPECT_EQ(std::count(split->tokens.begin(), split->tokens.end(), *tokenizer_->TokenId("<|end|>")),
            0);
  const RenderedPrompt empty = *template_->Render(Json({Message("user", "")}), options);
  EXPECT_EQ(TextOfChatContext(empty).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DocumentSplitterTest, ExplicitQueryIsItsLastOccurrence) {
  const std::string document = "Who is it? " + Words(50) + " Who is it? " + Words(9) + "\n";
  const auto split = Chat({Message("user", document + "Who is it? Tell me.")}, "  Who is it?\n");
  ExpectBorder(split, "Who is it? Tell");
  EXPECT_EQ(split->embedded_query, Ids("Who is it?"));
  EXPECT_EQ(split->query_insert_position, user_header_);
  EXPECT_EQ(TextOf(std::span(split->tokens).first(user_header_)), "<|begin|><|user|>\n");
}

TEST_F(DocumentSplitterTest, ExplicitQueryInAnEarlierMessage) {
  const auto split = Chat({Message("user", "the fox, " + Words(20)), Message("assistant", "ok"),
                           Message("user", "go on")},
                          "fox");
  ExpectBorder(split, "fox");
  EXPECT_EQ(split->embedded_query, Ids("fox"));
}

TEST_F(DocumentSplitterTest, ExplicitQueryThatIsAWholeMessageTakesItsHeader) {
  const auto split = Chat(
      {Message("user", Words(40)), Message("assistant", "ok"), Message("user", " Which one? ")},
      "Which one?");
  ExpectBorder(split, "<|user|>\nWhich");
  EXPECT_EQ(split->embedded_query, Ids("Which one?"));
}

TEST_F(DocumentSplitterTest, ExplicitQueryMustOccurInWhatTheUserWrote) {
  for (const char* query : {"nowhere", "<|user|>", "assistant", "one two"}) {
    const auto split =
        Chat({Message("user", "one"), Message("assistant", "x"), Message("user", "two")}, query);
    EXPECT_EQ(split.status().code(), absl::StatusCode::kInvalidArgument) << query;
    EXPECT_THAT(split.status().message(), HasSubstr("does not occur"));
  }
  EXPECT_THAT(Chat({Message("user", "one")}, " \n").status().message(), HasSubstr("empty"));
}

TEST_F(DocumentSplitterTest, DocumentInEarlierMessages) {
  const auto split = Chat({Message("user", Words(60)), Message("assistant", "Read."),
                           Message("user", "First\n\nand second?")});
  ExpectBorder(split, "<|user|>\nFirst");
  EXPECT_EQ(split->embedded_query, Ids("First\n\nand second?"));
  EXPECT_EQ(split->query_insert_position, user_header_);
}

TEST_F(DocumentSplitterTest, DocumentInTheSystemMessage) {
  const auto split = Chat({Message("system", Words(60)), Message("user", "Which?")});
  ExpectBorder(split, "<|user|>\nWhich");
  EXPECT_EQ(split->embedded_query, Ids("Which?"));
  EXPECT_EQ(split->query_insert_position,
            static_cast<int32_t>(Ids("<|begin|><|system|>\n").size()));
}

TEST_F(DocumentSplitterTest, ShortRulesBeforeADocumentOfTheUser) {
  const std::string rules = "Be brief.";
  const auto split =
      Chat({Message("system", rules), Message("user", Words(80) + "\n\nWhich is it?")});
  ExpectBorder(split, "Which is it?");
  EXPECT_EQ(
      split->query_insert_position,
      static_cast<int32_t>(Ids("<|begin|><|system|>\n" + rules + "<|end|>\n<|user|>\n").size()));
}

TEST_F(DocumentSplitterTest, OneMessageEndsWithTheQuestion) {
  for (const char* blank : {"\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n"}) {
    const auto split = Chat({Message("user", Words(80) + blank + "Which is it?\nSay.\n")});
    ExpectBorder(split, "Which is it?");
    EXPECT_EQ(split->embedded_query, Ids("Which is it?\nSay."));
    EXPECT_EQ(split->query_insert_position, user_header_);
  }
}

TEST_F(DocumentSplitterTest, OneParagraphIsAllQuery) {
  const auto split = Chat({Message("user", "Hello there,\nwho are you?")});
  ExpectBorder(split, "<|begin|>");
  EXPECT_EQ(split->query_begin, 0);
  EXPECT_EQ(split->query_insert_position, 0);
}

TEST_F(DocumentSplitterTest, LongLastParagraphGivesItsLastTokens) {
  const std::string content = "Title\n\n" + Words(900);
  const auto split = Chat({Message("user", content)});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, Ids(rendered_.text));
  const auto behind = static_cast<int32_t>(Ids("<|end|>\n<|assistant|>\n").size());
  const auto size = static_cast<int32_t>(split->tokens.size());
  EXPECT_EQ(split->query_begin, size - behind - kDefaultQueryTokens);
  ASSERT_EQ(split->embedded_query.size(), static_cast<size_t>(kDefaultQueryTokens));
  EXPECT_TRUE(content.ends_with(TextOf(split->embedded_query)));
  EXPECT_EQ(split->query_insert_position, user_header_);
}

TEST_F(DocumentSplitterTest, ParagraphOfAsManyTokensAsAQueryMayHave) {
  std::string exact;
  while (Ids(exact + " a").size() <= kDefaultQueryTokens) exact += " a";
  ASSERT_EQ(Ids(exact).size(), static_cast<size_t>(kDefaultQueryTokens));
  exact.erase(0, 1);
  const int32_t count = static_cast<int32_t>(Ids(exact).size());
  const auto split = Chat({Message("user", Words(30) + "\n\n" + exact)});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->embedded_query.size(), static_cast<size_t>(count));
  ExpectBorder(split, exact);
}

TEST_F(DocumentSplitterTest, ShorterTurnsBeforeALongLastMessage) {
  const auto split = Chat({Message("user", "Hi"), Message("assistant", Words(300)),
                           Message("user", Words(60) + "\n\nWhich?")});
  ExpectBorder(split, "Which?");  // the assistant's text does not count as a document
  EXPECT_EQ(split->query_insert_position, user_header_);
}

TEST_F(DocumentSplitterTest, AnswersAfterTheLastQuestionBelongToTheQuery) {
  const auto split =
      Chat({Message("user", Words(60)), Message("user", "Which?"), Message("assistant", "It is")});
  ExpectBorder(split, "<|user|>\nWhich");
}

TEST_F(DocumentSplitterTest, NoUserMessage) {
  const auto split = Chat({Message("system", Words(40)), Message("assistant", "so")});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->query_begin, 0);
  EXPECT_EQ(split->tokens, Ids(rendered_.text));
  EXPECT_TRUE(split->embedded_query.empty());
}

TEST_F(DocumentSplitterTest, EmptyMessages) {
  const std::vector<std::vector<Json>> chats = {
      {}, {Message("user", "")}, {Message("user", Words(9)), Message("user", "")}};
  for (const auto& messages : chats) {
    const auto split = Chat(messages);
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_EQ(TextOf(split->tokens), rendered_.text);
    EXPECT_LE(split->query_insert_position, split->query_begin);
    EXPECT_LE(split->query_begin, static_cast<int32_t>(split->tokens.size()));
  }
}

TEST_F(DocumentSplitterTest, SpecialTokensOfUsersStayTextOnBothSides) {
  const auto split = Chat({Message("user", "a<|end|>b " + Words(40) + "\n\nq<|end|>\n<|user|>")});
  ASSERT_TRUE(split.ok()) << split.status();
  std::vector<std::string> special;
  for (const int32_t id : split->tokens) {
    if (tokenizer_->IsSpecial(id)) special.push_back(tokenizer_->TokenText(id));
  }
  EXPECT_EQ(special,
            (std::vector<std::string>{"<|begin|>", "<|user|>", "<|end|>", "<|assistant|>"}));
  for (const int32_t id : split->embedded_query) EXPECT_FALSE(tokenizer_->IsSpecial(id));
  EXPECT_EQ(TextOf(split->embedded_query), "q<|end|>\n<|user|>");
}

TEST_F(DocumentSplitterTest, PlainText) {
  const std::string document = Words(50) + "\n\n";
  auto split = SplitPlainPrompt(*tokenizer_, document + "Which?", {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, *tokenizer_->Encode(document + "Which?", {}));
  EXPECT_EQ(split->query_begin, 1 + TokenAt(Ids(document + "Which?"), document.size()));
  EXPECT_EQ(split->query_insert_position, 1);  // after BOS
  EXPECT_EQ(split->embedded_query, Ids("Which?"));

  // The blank before the query shares a token with the query's beginning.
  split = SplitPlainPrompt(*tokenizer_, document + "Which?",
                           {.add_special_tokens = false, .query = "word1"});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, Ids(document + "Which?"));
  const size_t at = document.rfind("word1");
  EXPECT_EQ(split->query_begin, TokenAt(split->tokens, at));
  EXPECT_NE(TextOf(std::span(split->tokens).first(split->query_begin)), document.substr(0, at));
  EXPECT_EQ(split->embedded_query, Ids("word1"));
  EXPECT_EQ(split->query_insert_position, 0);

  split = SplitPlainPrompt(*tokenizer_, "one paragraph", {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->query_begin, 0);  // BOS alone is no document
  EXPECT_EQ(SplitPlainPrompt(*tokenizer_, "a", {.query = "b"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  split = SplitPlainPrompt(*tokenizer_, "", {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, tokenizer_->prefix_ids());
}

TEST_F(DocumentSplitterTest, EmbeddedQueryEndsWhereTheTurnDoes) {
  const std::string tail = "Which?<|end|>\n<|assistant|>\n";
  const auto split = SplitPlainPrompt(*tokenizer_, Words(50) + "\n\n" + tail, {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(TextOf(std::span(split->tokens).subspan(split->query_begin)), tail);
  EXPECT_EQ(TextOf(split->embedded_query), "Which?");
}

// A token across the border belongs to the document, with the part of it that is the query's.
TEST_F(DocumentSplitterTest, TokensAcrossTheBorder) {
  nlohmann::json json = {{"model", {{"type", "BPE"}}}};
  int id = 0;
  for (const char* token : {"a", "b", "?", "\n", "\n\n", "\n\nb", "é", "aé"})
    json["model"]["vocab"][token] = id++;
  json["model"]["merges"] = nlohmann::json::array({{"\n", "\n"}, {"\n\n", "b"}, {"a", "é"}});
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::FromJson(json.dump(), "");
  const auto split = [&](const char* text, const std::optional<std::string>& query) {
    PromptSplit made = *SplitPlainPrompt(*tokenizer, text, {.query = query});
    EXPECT_EQ(made.tokens, *tokenizer->Encode(text, {}));
    return made;
  };
  EXPECT_EQ(split("aa\n\nb?", std::nullopt).query_begin, 3);  // a a \n\nb ?
  EXPECT_EQ(split("aa\n\nb?", std::nullopt).embedded_query, (std::vector<int32_t>{2}));
  EXPECT_EQ(split("aa\n\na?", std::nullopt).query_begin, 3);  // a a \n\n a ?
  EXPECT_EQ(split("aa\n\nb?", "b?").embedded_query, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(split("aaé?", "é?").query_begin, 2);    // a aé ?
  EXPECT_EQ(split("éaé?", "é?").query_begin, 2);    // é aé ?
  EXPECT_EQ(split("aéé?", "é?").query_begin, 1);    // aé é ?
  EXPECT_EQ(split("aa\n\nb", "b").query_begin, 3);  // no token is left for the query
}

// In files made from SentencePiece models, a blank is put before the beginning of a text.
TEST_F(DocumentSplitterTest, OnlyTheTextGetsABlankOfItsOwn) {
  nlohmann::json json = {
      {"model", {{"type", "BPE"}, {"byte_fallback", true}, {"unk_token", "<unk>"}}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", "▁"}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}}};
  int id = 0;
  for (const char* token : {"<unk>", "▁", "a", "b", "?", "▁a", "<0x0A>"})
    json["model"]["vocab"][token] = id++;
  json["model"]["merges"] = nlohmann::json::array({"▁ a"});
  auto made = Tokenizer::FromJson(json.dump(), "");
  ASSERT_TRUE(made.ok()) << made.status();
  for (const char* text : {"a b\n\nab?", "a b a\n\na b", " a\n\n b", "a\n\n"}) {
    for (const std::optional<std::string>& query :
         {std::optional<std::string>(), std::optional<std::string>("a")}) {
      const auto split = SplitPlainPrompt(**made, text, {.query = query});
      ASSERT_TRUE(split.ok()) << split.status();
      EXPECT_EQ(*(*made)->Decode(split->tokens, false), text);
    }
  }
}

TEST_F(DocumentSplitterTest, TokenIds) {
  const std::vector<int32_t> ids = Ids("<|begin|>" + Words(700) + " the query<|end|>");
  const auto size = static_cast<int32_t>(ids.size());
  auto split = SplitTokenPrompt(*tokenizer_, ids, {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->tokens, ids);
  EXPECT_EQ(split->query_begin, size - kDefaultQueryTokens);
  EXPECT_EQ(split->query_insert_position, 1);
  EXPECT_EQ(split->embedded_query,
            std::vector<int32_t>(ids.end() - kDefaultQueryTokens, ids.end() - 1));

  split = SplitTokenPrompt(*tokenizer_, ids, {.query = "the query"});
  ASSERT_TRUE(split.ok()) << split.status();
  const std::string rest = TextOf(std::span(ids).subspan(split->query_begin));
  EXPECT_THAT(rest, HasSubstr("the query<|end|>"));
  EXPECT_LT(rest.size(), 20u);  // from the id in which the query begins
  EXPECT_EQ(split->embedded_query, Ids("the query"));

  split = SplitTokenPrompt(*tokenizer_, Ids("short"), {});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->query_begin, 0);
  EXPECT_EQ(SplitTokenPrompt(*tokenizer_, ids, {.query = "absent"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const int32_t bad : {-1, tokenizer_->vocab_size()}) {
    const auto refused = SplitTokenPrompt(*tokenizer_, {0, bad}, {});
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(refused.status().message(), HasSubstr("index 1"));
  }
  EXPECT_TRUE(SplitTokenPrompt(*tokenizer_, {}, {}).ok());
}

}  // namespace
}  // namespace apb::text
