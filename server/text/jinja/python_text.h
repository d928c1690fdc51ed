// Python's texts of values (str(), repr(), json.dumps()) and its string functions on code points.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/jinja/value.h"

namespace apb::text::jinja {

// str(value), as {{ value }} prints it. Strings keep their origins; the text of a list or
// dictionary has the origin of the first value within it.
Text ToText(const Value& value);
std::string FloatText(double number);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
// json.dumps(value). Fails (TemplateError) for values that JSON does not have.
std::string DumpJson(const Value& value, const JsonStyle& style);

// str.isspace() of one character.
bool IsPythonSpace(char32_t code_point);
// str.strip and its one-sided forms. Without `characters` it strips white space.
Text Strip(const Text& text, const std::optional<std::string>& characters, bool left, bool right);
// The byte offset of each code point, followed by the size in bytes.
std::vector<size_t> CodePointOffsets(std::string_view text);
// Maps each character with Unicode's simple case mapping (and ß to SS, İ to i̇).
enum class Case { kUpper, kLower };
std::string MapCase(std::string_view text, Case target);
// str.splitlines().
std::vector<Text> SplitLines(const Text& text);

}  // namespace apb::text::jinja
