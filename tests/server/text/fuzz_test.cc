// Goal: no template, tokenizer file or message crashes or hangs the text library; broken input is
// refused with a status. Method: a bounded number of random and mutated inputs from fixed seeds.
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "engine/base/json_reader.h"
#include "server/text/chat_template.h"
#include "server/text/document_splitter.h"
#include "server/text/tokenizer.h"

namespace apb::text {
namespace {

using Random = std::mt19937;

template <typename T>
const T& Pick(Random& random, const std::vector<T>& from) {
  return from[random() % from.size()];
}

std::string RandomBytes(Random& random, size_t most) {
  std::string bytes(random() % most, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// Erases, doubles, overwrites and inserts pieces of the text.
std::string Mutated(Random& random, std::string text, const std::vector<std::string>& pieces) {
  for (unsigned i = 0; i < 1 + random() % 4 && !text.empty(); ++i) {
    const size_t at = random() % text.size();
    const size_t size = std::min<size_t>(random() % 20, text.size() - at);
    switch (random() % 4) {
      case 0:
        text.erase(at, size);
        break;
      case 1:
        text.insert(at, text.substr(at, size));
        break;
      case 2:
        text[at] = static_cast<char>(random());
        break;
      default:
        text.insert(at, Pick(random, pieces));
    }
  }
  return text;
}

Json RandomJson(Random& random, int depth) {
  static const std::vector<std::string> words = {"role",     "content", "user",      "system",
                                                 "function", "text",    "assistant", "tool_calls",
                                                 "type",     "é👍",      "<|end|>",   ""};
  switch (random() % (depth > 3 ? 6 : 9)) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return static_cast<int64_t>(random()) - 2'000'000'000;
    case 3:
      return random() / 3.0;
    case 4:
    case 5:
      return Pick(random, words);
    case 6: {
      Json list = Json::array();
      for (unsigned i = 0; i < random() % 4; ++i) list.push_back(RandomJson(random, depth + 1));
      return list;
    }
    default: {
      Json object = Json::object();
      for (unsigned i = 0; i < random() % 5; ++i)
        object[Pick(random, words)] = RandomJson(random, depth + 1);
      return object;
    }
  }
}

Json RandomMessages(Random& random) {
  if (random() % 8 == 0) return RandomJson(random, 0);
  Json messages = Json::array();
  for (unsigned i = 0; i < random() % 5; ++i) {
    Json message = {
        {"role", Pick<std::string>(random, {"user", "assistant", "system", "tool", "x"})},
        {"content", RandomJson(random, 1)}};
    if (random() % 3 == 0) message["tool_calls"] = RandomJson(random, 1);
    if (random() % 4 == 0) message["content"] = RandomBytes(random, 30);
    messages.push_back(std::move(message));
  }
  return messages;
}

std::vector<std::string> Templates() {
  std::vector<std::string> templates;
  const auto folder =
      std::filesystem::path(APB_SOURCE_DIR) / "tests" / "server" / "text" / "chat_templates";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".jinja")
      templates.push_back(*base::ReadFile(entry.path().string(), 1 << 20));
  }
  std::sort(templates.begin(), templates.end());
  return templates;
}

const std::vector<std::string>& Fragments() {
  static const auto* fragments = new std::vector<std::string>{"{{ ",
                                                              " }}",
                                                              "{%- ",
                                                              " -%}",
                                                              "{% if ",
                                                              "{% endif %}",
                                                              "{% for m in ",
                                                              " %}",
                                                              "{% endfor %}",
                                                              "{% else %}",
                                                              "{# ",
                                                              " #}",
                                                              "messages",
                                                              "m.content",
                                                              "tools",
                                                              "x",
                                                              "(",
                                                              ")",
                                                              "[",
                                                              "]",
                                                              "{",
                                                              "}",
                                                              " | ",
                                                              "tojson",
                                                              "trim",
                                                              "list",
                                                              "length",
                                                              "map('upper')",
                                                              "[::-1]",
                                                              ".split()",
                                                              ".items()",
                                                              " + ",
                                                              " ~ ",
                                                              " * ",
                                                              " ** ",
                                                              " // ",
                                                              " % ",
                                                              "1",
                                                              "-1",
                                                              "9223372036854775807",
                                                              "0.5",
                                                              "1e308",
                                                              "'a'",
                                                              "\"",
                                                              " is ",
                                                              "defined",
                                                              " in ",
                                                              " not ",
                                                              " and ",
                                                              "namespace(a=1)",
                                                              "{% set x = ",
                                                              "{% set x %}",
                                                              "{% endset %}",
                                                              "range(9)",
                                                              "{% macro f(a, b=1) %}",
                                                              "{% endmacro %}",
                                                              "f(x)",
                                                              "loop.index",
                                                              ",",
                                                              ":",
                                                              "=",
                                                              "\n",
                                                              " ",
                                                              "é",
                                                              "\xC3",
                                                              "{% raw %}",
                                                              "{% endraw %}",
                                                              "none",
                                                              "raise_exception(x)",
                                                              "strftime_now(x)",
                                                              "dict(x)",
                                                              "|sort",
                                                              "|join(x)"};
  return *fragments;
}

// The template is refused or rendered; the parts of a rendered prompt fit together.
void TryTemplate(const std::string& source, const Json& messages, Random& random) {
  auto made = ChatTemplate::Parse(source);
  if (!made.ok()) {
    EXPECT_TRUE(absl::IsInvalidArgument(made.status()) || absl::IsUnimplemented(made.status()))
        << made.status();
    return;
  }
  RenderOptions options;
  if (random() % 2 == 0) options.tools = RandomJson(random, 0);
  if (random() % 2 == 0) options.kwargs = {{"x", RandomJson(random, 0)}};
  const auto prompt = (*made)->Render(messages, options);
  if (!prompt.ok()) return;
  std::string joined;
  for (const PromptSegment& segment : prompt->Segments()) joined += segment.text;
  EXPECT_EQ(joined, prompt->text);
  for (const auto& turn : prompt->turns) {
    EXPECT_LE(turn.range.begin, turn.range.end);
    EXPECT_LE(turn.range.end, prompt->text.size());
  }
}

TEST(FuzzTest, RandomTemplates) {
  Random random(1);
  for (int i = 0; i < 3000; ++i) {
    std::string source;
    if (i % 4 == 0) {
      source = RandomBytes(random, 60);
    } else {
      for (unsigned j = 0; j < random() % 30; ++j) source += Pick(random, Fragments());
    }
    TryTemplate(source, RandomMessages(random), random);
  }
}

TEST(FuzzTest, MutatedTemplates) {
  Random random(2);
  const std::vector<std::string> templates = Templates();
  ASSERT_GT(templates.size(), 5u);
  for (int i = 0; i < 3000; ++i)
    TryTemplate(Mutated(random, Pick(random, templates), Fragments()), RandomMessages(random),
                random);
}

TEST(FuzzTest, RandomMessagesThroughSplitter) {
  Random random(3);
  const std::string checkpoint = APB_SOURCE_DIR "/tests/reference_model/checkpoint";
  auto tokenizer = Tokenizer::Load(checkpoint + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<std::unique_ptr<ChatTemplate>> templates;
  for (const std::string& source : Templates()) templates.push_back(*ChatTemplate::Parse(source));
  int split_count = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto prompt = templates[i % templates.size()]->Render(RandomMessages(random), {});
    if (!prompt.ok()) continue;
    std::optional<std::string> query;
    if (random() % 3 == 0) query = Pick<std::string>(random, {"user", "e", "\n", "\xFF"});
    const auto split = SplitChatPrompt(**tokenizer, *prompt, query);
    if (!split.ok()) continue;
    ++split_count;
    EXPECT_EQ(*(*tokenizer)->Decode(split->tokens, false), prompt->text);
    EXPECT_LE(split->query_insert_position, split->query_begin);
    EXPECT_LE(split->query_begin, static_cast<int32_t>(split->tokens.size()));
  }
  EXPECT_GT(split_count, 300);
}

TEST(FuzzTest, ValuesCannotNestWithoutEnd) {
  Random random(4);
  for (const char* grow :
       {"[ns.v]", "(ns.v,)", "{'v': ns.v}", "dict(v=ns.v)", "[ns.v]|map('list')"}) {
    const std::string source =
        "{% set ns = namespace(v=[]) %}{% for i in range(100000) %}{% set ns.v = " +
        std::string(grow) + " %}{% endfor %}";
    auto made = ChatTemplate::Parse(source);
    ASSERT_TRUE(made.ok()) << made.status();
    (void)(*made)->Render(Json::array(), {});
  }
  for (const char* source : {"{% set ns = namespace() %}{% set ns.v = ns %}",
                             "{% set ns = namespace() %}{% set ns.v = [ns] %}",
                             "{% for a in [1] %}{% set x = [loop] %}{% endfor %}"}) {
    const auto prompt = (*ChatTemplate::Parse(source))->Render(Json::array(), {});
    EXPECT_EQ(prompt.status().code(), absl::StatusCode::kUnimplemented) << prompt.status();
  }
}

// A small file with every component.
const nlohmann::json& SmallTokenizer() {
  static const auto* json = new nlohmann::json(nlohmann::json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<s>", "special": true, "normalized": false},
                     {"id": 9, "content": "ab", "lstrip": true, "normalized": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "_"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "_"}, {"type": "Strip"}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+|\\p{L}+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true}]},
    "model": {"type": "BPE", "unk_token": "<s>", "byte_fallback": true, "fuse_unk": true, "ignore_merges": false,
        "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 9, "_": 3, "_a": 4, "<0x41>": 5, "c": 6},
        "merges": [["_", "a"], "a b"]},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
  })"));
  return *json;
}

// Puts another value in a random place of the tree.
void MutateTree(Random& random, nlohmann::json& json) {
  if (json.is_structured() && !json.empty() && random() % 5 != 0) {
    auto it = json.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random() % json.size()));
    if (random() % 12 == 0) {
      json.erase(it);
    } else {
      MutateTree(random, *it);
    }
    return;
  }
  static const std::vector<nlohmann::json> others = {nullptr,
                                                     true,
                                                     -1,
                                                     3,
                                                     1e9,
                                                     99999999999999,
                                                     "",
                                                     "a",
                                                     "Sequence",
                                                     "ByteLevel",
                                                     "BPE",
                                                     "Metaspace",
                                                     "(((",
                                                     "\\p{Foo}",
                                                     "[a&&b]",
                                                     "(a*)*",
                                                     nlohmann::json::array(),
                                                     nlohmann::json::object(),
                                                     {{"type", "NFD"}},
                                                     {{"type", "ByteLevel"}},
                                                     {{"type", "WhitespaceSplit"}},
                                                     {{"Regex", "(?:x+x+)+y"}},
                                                     {{"String", ""}}};
  json = Pick(random, others);
}

TEST(FuzzTest, MutatedTokenizerFiles) {
  Random random(5);
  ASSERT_TRUE(Tokenizer::FromJson(SmallTokenizer().dump(), "").ok())
      << Tokenizer::FromJson(SmallTokenizer().dump(), "").status();
  int loaded = 0;
  for (int i = 0; i < 4000; ++i) {
    nlohmann::json json = SmallTokenizer();
    for (unsigned j = 0; j < 1 + random() % 3; ++j) MutateTree(random, json);
    std::string text = json.dump();
    if (i % 5 == 0) text = Mutated(random, text, {"{", "\"", "[", "\\u0000", "\xFF", "1e999"});
    const auto tokenizer =
        Tokenizer::FromJson(text, i % 3 == 0 ? R"({"bos_token": {"content": "<s>"}})" : "");
    if (!tokenizer.ok()) continue;
    ++loaded;
    for (const char* sample :
         {"", " ab <s> cA1\n\nxé", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}) {
      const auto ids = (*tokenizer)->Encode(sample, {.parse_special = true});
      EXPECT_TRUE(!ids.ok() || (*tokenizer)->Decode(*ids, false).ok());
    }
    std::vector<int32_t> all((*tokenizer)->vocab_size() < 1000 ? (*tokenizer)->vocab_size() : 0);
    for (size_t id = 0; id < all.size(); ++id)
      (void)(*tokenizer)->TokenBytes(static_cast<int32_t>(id));
  }
  EXPECT_GT(loaded, 100);
}

TEST(FuzzTest, RandomBytesAsTokenizerAndText) {
  Random random(6);
  auto tokenizer = Tokenizer::FromJson(SmallTokenizer().dump(), "");
  ASSERT_TRUE(tokenizer.ok());
  for (int i = 0; i < 2000; ++i) {
    EXPECT_FALSE(Tokenizer::FromJson(RandomBytes(random, 60), "").ok());
    const std::string text = RandomBytes(random, 40);
    const auto ids = (*tokenizer)->Encode(text, {.parse_special = true});
    if (!ids.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(ids.status())) << ids.status();
    }
  }
}

// Texts that invite quadratic work; the test's time limit is the check.
TEST(FuzzTest, LongMonotonousTexts) {
  const std::string checkpoint = APB_SOURCE_DIR "/tests/reference_model/checkpoint";
  auto tokenizer = Tokenizer::Load(checkpoint + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const char* unit :
       {"a", " ", "\n", "1", "é", "\u0301", "<|", "!", "ab", "<|end|>", "👍", "\r\n ", "'"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto ids = (*tokenizer)->Encode(text, {.parse_special = true});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_TRUE(*(*tokenizer)->Decode(*ids, false) == text.insert(0, "<|begin|>")) << unit;
  }
}

}  // namespace
}  // namespace apb::text
