// How Python prints values: str(), repr(), json.dumps(), and the string functions that know code
// points.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/jinja/value.h"

namespace apb::text::jinja {

// str(value), as {{ value }} prints it; keeps the origin of strings and stamps it on what is
// printed of lists.
Text ToText(const Value& value);
std::string FloatText(double number);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
// json.dumps(value); fails for values that JSON has not.
std::string DumpJson(const Value& value, const JsonStyle& style);

// str.isspace() of one character.
bool IsPythonSpace(char32_t code_point);
// str.strip and its one-sided forms; without `characters`: white space.
Text Strip(const Text& text, const std::optional<std::string>& characters, bool left, bool right);
// Byte offset of each code point, and the size at the end.
std::vector<size_t> CodePointOffsets(std::string_view text);
// Changes each character with Unicode's simple mapping.
enum class Case { kUpper, kLower };
std::string MapCase(std::string_view text, Case target);
// str.splitlines().
std::vector<Text> SplitLines(const Text& text);

}  // namespace apb::text::jinja
