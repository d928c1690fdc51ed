// UTF-8: validation, code points, and the few Unicode properties that tokenizers need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace apb::text {

// The offset of the first byte that is not part of valid UTF-8; npos if all is valid.
size_t FindInvalidUtf8(std::string_view text);

// The code point at `pos` of valid UTF-8; moves `pos` after it.
char32_t NextCodePoint(std::string_view text, size_t& pos);
// The code point that ends at `pos`; moves `pos` to its begin.
char32_t PreviousCodePoint(std::string_view text, size_t& pos);
void AppendUtf8(char32_t code_point, std::string& out);

// Moves all certain text from the front of `pending` to the result: whole characters, and U+FFFD
// for each maximal broken piece. Bytes that may still become a character stay, unless `final`.
std::string TakeDecodable(std::string& pending, bool final);

// Has the Unicode property White_Space.
bool IsWhitespace(char32_t code_point);
// Has one of the categories Nd, Nl, No.
bool IsNumeric(char32_t code_point);
// Is a letter, mark, digit or connector, like \w in regular expressions.
bool IsWordCharacter(char32_t code_point);

}  // namespace apb::text
