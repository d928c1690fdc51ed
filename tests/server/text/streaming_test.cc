// Goal: streamed text has only whole characters, and stop strings end it wherever the tokens'
// borders are. Method: pieces of every size against a search in the whole text; random ids of the
// demo checkpoint's tokenizer against decoding them at once.
#include <gtest/gtest.h>

#include <random>

#include "server/text/incremental_detokenizer.h"
#include "server/text/stop_matcher.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

struct Stopped {
  std::string text;
  std::optional<size_t> matched;

  bool operator==(const Stopped&) const = default;
};

// Sends a text through a matcher in pieces of `size` bytes.
Stopped Stream(const std::string& text, const std::vector<std::string>& stops, bool include,
               size_t size) {
  auto matcher = StopMatcher::Create(stops, include);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  Stopped out;
  for (size_t i = 0; i < text.size() && !out.matched; i += size) {
    StopResult result = matcher->Push(std::string_view(text).substr(i, size));
    out.text += result.text;
    out.matched = result.matched;
  }
  const std::string held = matcher->Flush();
  EXPECT_TRUE(!out.matched || held.empty());
  out.text += held;
  return out;
}

// The expected result: the stop string that ends first; among those the longest.
Stopped Search(const std::string& text, const std::vector<std::string>& stops, bool include) {
  Stopped best{text, std::nullopt};
  size_t best_end = std::string::npos;
  for (size_t i = 0; i < stops.size(); ++i) {
    const size_t at = text.find(stops[i]);
    if (at == std::string::npos) continue;
    const size_t end = at + stops[i].size();
    if (best.matched &&
        (end > best_end || (end == best_end && stops[i].size() <= stops[*best.matched].size())))
      continue;
    best = {text.substr(0, include ? end : at), i};
    best_end = end;
  }
  return best;
}

TEST(StopMatcherTest, HoldsBackWhatMayBeginAStopString) {
  auto matcher = StopMatcher::Create({"</end>"}, false);
  ASSERT_TRUE(matcher.ok());
  EXPECT_EQ(matcher->Push("text</e").text, "text");
  EXPECT_EQ(matcher->Push("x<").text, "</ex");  // it was not the stop string
  EXPECT_EQ(matcher->Push("/").text, "");
  const StopResult last = matcher->Push("end>behind");
  EXPECT_EQ(last.text, "");
  EXPECT_EQ(last.matched, 0u);
  EXPECT_EQ(matcher->Push("more").text, "");  // nothing comes after a match
  EXPECT_EQ(matcher->Flush(), "");
}

TEST(StopMatcherTest, GivesBackTheRestAtTheEnd) {
  auto matcher = StopMatcher::Create({"stop"}, false);
  ASSERT_TRUE(matcher.ok());
  EXPECT_EQ(matcher->Push("a sto").text, "a ");
  EXPECT_EQ(matcher->Flush(), "sto");
}

TEST(StopMatcherTest, NoStopStringsPassEverything) {
  auto matcher = StopMatcher::Create({}, false);
  ASSERT_TRUE(matcher.ok());
  EXPECT_EQ(matcher->Push("abc").text, "abc");
  EXPECT_EQ(matcher->Flush(), "");
}

TEST(StopMatcherTest, RefusesWhatIsOutOfLimits) {
  EXPECT_FALSE(StopMatcher::Create({""}, false).ok());
  EXPECT_FALSE(StopMatcher::Create({std::string(kMaxStopStringBytes + 1, 'a')}, false).ok());
  EXPECT_FALSE(StopMatcher::Create(std::vector<std::string>(kMaxStopStrings + 1, "a"), false).ok());
  EXPECT_TRUE(StopMatcher::Create({std::string(kMaxStopStringBytes, 'a')}, false).ok());
}

TEST(StopMatcherTest, OverlappingStopStringsAtEveryBorder) {
  const std::vector<std::vector<std::string>> sets = {
      {"aab", "ab"}, {"ab", "aab"},     {"abab", "babb"}, {"b", "abc"},  {"\n\n", "\n"},
      {"é", "è!"},   {"👍🏽", "👍"}, {"aaaa"},         {"cab", "ca"}, {"User:", "\nUser:"}};
  std::mt19937 random(1);
  const std::vector<std::string> alphabet = {"a", "b", "c",    "\n",    "é",
                                             "è", "👍", "🏽", "User:", "!"};
  int matched = 0;
  for (const auto& stops : sets) {
    for (int round = 0; round < 60; ++round) {
      std::string text;
      for (int i = 0; i < 24; ++i) text += alphabet[random() % alphabet.size()];
      for (const bool include : {false, true}) {
        const Stopped wanted = Search(text, stops, include);
        matched += wanted.matched.has_value();
        for (size_t size = 1; size <= 9; ++size) {
          EXPECT_EQ(Stream(text, stops, include, size), wanted) << text << " by " << size;
        }
      }
    }
  }
  EXPECT_GT(matched, 200);
}

class DetokenizerTest : public ::testing::Test {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ =
      *Tokenizer::Load(APB_SOURCE_DIR "/tests/reference_model/checkpoint/tokenizer.json");

  // The pieces of the text; checks that none has a part of a character.
  std::vector<std::string> Pieces(const std::vector<int32_t>& ids, bool skip_special) {
    IncrementalDetokenizer detokenizer(*tokenizer_, skip_special);
    std::vector<std::string> pieces;
    for (const int32_t id : ids) {
      auto piece = detokenizer.Push(id);
      EXPECT_TRUE(piece.ok()) << piece.status();
      pieces.push_back(piece.value_or(""));
    }
    pieces.push_back(detokenizer.Flush());
    for (const std::string& piece : pieces) EXPECT_EQ(FindInvalidUtf8(piece), std::string::npos);
    return pieces;
  }
  static std::string Joined(const std::vector<std::string>& pieces) {
    std::string text;
    for (const std::string& piece : pieces) text += piece;
    return text;
  }
};

TEST_F(DetokenizerTest, CharactersOfSeveralTokensComeWhole) {
  const std::string text = "a👨‍👩‍👧é中\u0301 end";
  const std::vector<int32_t> ids = *tokenizer_->Encode(text, {.add_special_tokens = false});
  ASSERT_GT(ids.size(), 12u);  // the tokenizer has no emoji: their bytes are tokens
  const auto pieces = Pieces(ids, false);
  EXPECT_EQ(Joined(pieces), text);
  EXPECT_TRUE(std::find(pieces.begin(), pieces.end(), "👨") != pieces.end());
}

TEST_F(DetokenizerTest, BrokenEndBecomesAReplacementCharacter) {
  std::vector<int32_t> ids = *tokenizer_->Encode("x👍", {.add_special_tokens = false});
  ids.pop_back();
  EXPECT_EQ(Pieces(ids, false).back(), "\uFFFD");
  ids.push_back(*tokenizer_->TokenId("a"));
  EXPECT_EQ(Joined(Pieces(ids, false)), "x\uFFFDa");
}

TEST_F(DetokenizerTest, SpecialTokens) {
  const std::vector<int32_t> ids =
      *tokenizer_->Encode("a<|end|>b", {.add_special_tokens = true, .parse_special = true});
  EXPECT_EQ(Joined(Pieces(ids, true)), "ab");
  EXPECT_EQ(Joined(Pieces(ids, false)), "<|begin|>a<|end|>b");
}

TEST_F(DetokenizerTest, RandomIdsGiveTheTextOfAllAtOnce) {
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 30; ++i)
      ids.push_back(static_cast<int32_t>(
          // The first 300 ids include the bytes.
          random() % (round % 2 != 0 ? 300 : tokenizer_->vocab_size())));
    for (const bool skip : {false, true})
      EXPECT_EQ(Joined(Pieces(ids, skip)), *tokenizer_->Decode(ids, skip));
  }
}

TEST_F(DetokenizerTest, UnknownIdChangesNothing) {
  IncrementalDetokenizer detokenizer(*tokenizer_, false);
  const auto ids = *tokenizer_->Encode("é👍", {.add_special_tokens = false});
  std::string text;
  for (const int32_t id : ids) {
    EXPECT_FALSE(detokenizer.Push(-1).ok());
    EXPECT_FALSE(detokenizer.Push(tokenizer_->vocab_size()).ok());
    text += *detokenizer.Push(id);
  }
  EXPECT_EQ(text, "é👍");
}

TEST_F(DetokenizerTest, StopStringAcrossTokens) {
  const auto ids = *tokenizer_->Encode("one two\nUser: three", {.add_special_tokens = false});
  IncrementalDetokenizer detokenizer(*tokenizer_, true);
  auto matcher = StopMatcher::Create({"\nUser:"}, false);
  ASSERT_TRUE(matcher.ok());
  std::string shown;
  bool stopped = false;
  for (const int32_t id : ids) {
    const StopResult result = matcher->Push(*detokenizer.Push(id));
    shown += result.text;
    stopped = stopped || result.matched;
  }
  EXPECT_TRUE(stopped);
  EXPECT_EQ(shown, "one two");
}

}  // namespace
}  // namespace apb::text
