// UTF-8: validation, code points, and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace apb::text {

// Offset of the first byte that is not part of valid UTF-8; npos when all is valid.
size_t FindInvalidUtf8(std::string_view text);

// The code point at `pos` of valid UTF-8; moves `pos` behind it.
char32_t NextCodePoint(std::string_view text, size_t& pos);
// The code point that ends at `pos`, which is moved to its begin.
char32_t PreviousCodePoint(std::string_view text, size_t& pos);
void AppendUtf8(char32_t code_point, std::string& out);

// Moves what is certain from the front of `pending` to the result: whole characters, and U+FFFD for
// each maximal broken piece. What may still become a character stays, unless `final`.
std::string TakeDecodable(std::string& pending, bool final);

// The Unicode property White_Space.
bool IsWhitespace(char32_t code_point);
// Categories Nd, Nl, No.
bool IsNumeric(char32_t code_point);
// Letters, marks, digits, connectors, as \w of regular expressions.
bool IsWordCharacter(char32_t code_point);

}  // namespace apb::text
