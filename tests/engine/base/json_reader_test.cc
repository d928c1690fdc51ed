// Goal: JSON from outside is refused with the place of the error, and limits apply before anything
// is built. Method: tables of texts and of fields of every type, good and bad.
#include "engine/base/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "engine/base/field_error.h"

namespace apb::base {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(ParseJsonObject, RefusesWhatIsNoObject) {
  EXPECT_TRUE(ParseJsonObject(R"({"a": "[[{\"", "b": [{}]})", "x").ok());
  const std::pair<std::string, const char*> cases[] = {
      {"", "x: is no valid JSON: error at byte 1"},
      {"[1]", "x: must be a JSON object"},
      {"{\"a\": }", "error at byte 7"},
      {"{\"a\": \"\xff\"}", "is no valid JSON"},
      {"{\"a\": 1e999}", "a number is out of range"},
      {std::string(100000, '['), "nested deeper than 64"},
      {"{\"a\": " + std::string(64, '['), "nested deeper than 64"}};
  for (const auto& [text, message] : cases) {
    const absl::Status status = ParseJsonObject(text, "x").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  const std::string deepest = std::string(63, '[') + std::string(63, ']');
  EXPECT_TRUE(ParseJsonObject("{\"a\": " + deepest + "}", "x").ok());
}

TEST(ReadFile, LimitsAndAbsence) {
  const std::string path = testing::TempDir() + "json_reader_test";
  std::ofstream(path) << "12345";
  EXPECT_EQ(*ReadFile(path, 5), "12345");
  EXPECT_EQ(ReadFile(path, 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFile(path + "/x", 4).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(testing::TempDir(), 4).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::remove(path);
}

TEST(JsonReader, ReadsEveryType) {
  const json object =
      json::parse(R"({"yes": true, "seven": 7, "float": 7.0, "all": 18446744073709551615,
      "minus": -1, "half": 0.5, "text": "t", "texts": ["a", "b"], "ids": [1, 2.0, -3],
      "null": null})");
  JsonReader reader(object);
  EXPECT_TRUE(reader.Boolean("yes"));
  EXPECT_EQ(reader.Integer("seven", 7, 7), 7);
  EXPECT_EQ(reader.Integer("float", 0, 9), 7);
  EXPECT_EQ(reader.Bits("all"), 18446744073709551615u);
  EXPECT_EQ(reader.Bits("minus"), 18446744073709551615u);
  EXPECT_EQ(reader.Number("half", 0, 1), 0.5);
  EXPECT_EQ(reader.Number("seven", 0, 10), 7.0);
  EXPECT_EQ(reader.String("text"), "t");
  EXPECT_EQ(reader.Strings("text"), std::vector<std::string>{"t"});
  EXPECT_EQ(reader.Strings("texts"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(reader.Integers("ids"), (std::vector<int32_t>{1, 2, -3}));
  EXPECT_EQ(reader.Array("texts")->size(), 2u);
  EXPECT_FALSE(reader.Has("null") || reader.Has("nothing"));
  EXPECT_TRUE(reader.Boolean("null", true));
  EXPECT_EQ(reader.Integer("nothing", 0, 1, 5), 5);  // a fallback may be outside the range
  EXPECT_EQ(reader.Bits("nothing", 3), 3u);
  EXPECT_EQ(reader.Number("null", 0, 1, 2), 2.0);
  EXPECT_EQ(reader.String("nothing", "x"), "x");
  EXPECT_TRUE(reader.Strings("null").empty() && reader.Integers("null").empty());
  EXPECT_TRUE(reader.status().ok()) << reader.status();
}

TEST(JsonReader, WrongFieldsAreNamed) {
  const json object = json::parse(R"({"text": "t", "big": 5000000000, "huge": 18446744073709551615,
      "mixed": [1, "a"], "half": 1.5, "strings": ["a", 1], "bigs": [1, 5000000000]})");
  using Read = void (*)(JsonReader&);
  const std::pair<Read, const char*> cases[] = {
      {[](JsonReader& r) { r.Boolean("text"); }, "apb.text: must be true or false"},
      {[](JsonReader& r) { r.Boolean("nothing"); }, "apb.nothing: is missing"},
      {[](JsonReader& r) { r.Integer("text", 0, 1, 0); }, "apb.text: must be an integer"},
      {[](JsonReader& r) { r.Integer("half", 0, 9); }, "apb.half: must be an integer"},
      {[](JsonReader& r) { r.Integer("big", 0, 9); }, "apb.big: must be in [0, 9], got 5000000000"},
      {[](JsonReader& r) { r.Integer("huge", 0, 9); }, "got 18446744073709551615"},
      {[](JsonReader& r) { r.Integer("nothing", 0, 9); }, "apb.nothing: is missing"},
      {[](JsonReader& r) { r.Bits("half"); }, "apb.half: must be an integer"},
      {[](JsonReader& r) { r.Number("text", 0, 1); }, "apb.text: must be a number"},
      {[](JsonReader& r) { r.Number("half", 0, 1); }, "apb.half: must be in [0, 1], got 1.5"},
      {[](JsonReader& r) { r.String("big"); }, "apb.big: must be a string"},
      {[](JsonReader& r) { r.Strings("strings"); }, "must be a string or a list of strings"},
      {[](JsonReader& r) { r.Strings("big"); }, "must be a string or a list of strings"},
      {[](JsonReader& r) { r.Integers("mixed"); }, "apb.mixed: must be a list of integers"},
      {[](JsonReader& r) { r.Integers("bigs"); }, "got 5000000000"},
      {[](JsonReader& r) { r.Array("text"); }, "apb.text: must be a list"},
      {[](JsonReader& r) { r.Array("nothing"); }, "apb.nothing: is missing"}};
  for (const auto& [read, message] : cases) {
    JsonReader reader(object, "apb.");
    read(reader);
    EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(reader.status().message()), HasSubstr(message));
    EXPECT_THAT(FieldOf(reader.status()), HasSubstr("apb."));
    reader.Fail("later", "hides the first");
    EXPECT_THAT(std::string(reader.status().message()), HasSubstr(message));
  }
}

TEST(JsonReader, NoObject) {
  const json list = json::array({1});
  JsonReader reader(list, "config.json: rope.");
  EXPECT_EQ(reader.Integer("x", 0, 1, 1), 1);
  EXPECT_EQ(reader.status().message(), "config.json: rope: must be an object");
}

}  // namespace
}  // namespace apb::base
