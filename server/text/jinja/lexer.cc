// Follows the regular expressions of jinja2's lexer by hand.
#include "server/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "server/text/jinja/error.h"
#include "server/text/jinja/python_text.h"
#include "server/text/utf8.h"

namespace apb::text::jinja {
namespace {

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();  // keep_trailing_newline is off
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeNewlines(source)) {}

  std::vector<Token> Run() {
    while (pos_ < source_.size()) Root();
    Emit(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return std::string_view(source_).substr(pos_); }

  void Emit(TokenType type, std::string text) { tokens_.push_back({type, std::move(text), line_}); }

  void MoveTo(size_t pos) {
    line_ += static_cast<int>(std::count(source_.begin() + pos_, source_.begin() + pos, '\n'));
    pos_ = pos;
  }

  size_t SkipSpace(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!IsPythonSpace(NextCodePoint(source_, next))) break;
      pos = next;
    }
    return pos;
  }

  // Reads the data up to the next tag, and the tag.
  void Root() {
    size_t tag = pos_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 == source_.size()) {
        EmitData(source_.size());
        return;
      }
      const char kind = source_[tag + 1];
      if (kind == '%' || kind == '{' || kind == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    EmitTrimmed(tag, kind, sign);
    MoveTo(tag + (has_sign ? 3 : 2));
    if (kind == '#') {
      Comment();
    } else if (kind == '{') {
      Emit(TokenType::kVariableBegin, "");
      Inside(/*is_block=*/false);
    } else if (const size_t after = SkipSpace(pos_);
               IsWord(after, "raw") && IsTagEnd(SkipSpace(after + 3))) {
      Raw(SkipSpace(after + 3));
    } else {
      Emit(TokenType::kBlockBegin, "");
      Inside(/*is_block=*/true);
    }
  }

  bool IsWord(size_t pos, std::string_view word) const {
    return std::string_view(source_).substr(pos).starts_with(word);
  }
  bool IsTagEnd(size_t pos) const { return IsWord(pos, "%}") || IsWord(pos, "-%}"); }

  void EmitData(size_t end) {
    if (end > pos_) Emit(TokenType::kData, source_.substr(pos_, end - pos_));
    MoveTo(end);
  }

  // Emits the data before a tag, without the white space that the tag's sign or lstrip_blocks
  // removes.
  void EmitTrimmed(size_t tag, char kind, char sign) {
    size_t end = tag;
    if (sign == '-') {
      while (end > pos_) {
        size_t previous = end;
        if (!IsPythonSpace(PreviousCodePoint(source_, previous))) break;
        end = previous;
      }
    } else if (sign != '+' && kind != '{') {
      const size_t newline = tag > pos_ ? source_.rfind('\n', tag - 1) : std::string::npos;
      const bool has_newline = newline != std::string::npos && newline >= pos_;
      const size_t line_begin = has_newline ? newline + 1 : pos_;
      if ((has_newline || line_starting_) && SkipSpace(line_begin) >= tag) end = line_begin;
    }
    if (end > pos_) Emit(TokenType::kData, source_.substr(pos_, end - pos_));
    MoveTo(tag);
  }

  // Moves past the end of a tag, which has `size` characters and begins at `pos`. `strips`: the end
  // has a minus sign.
  void CloseTag(size_t pos, size_t size, bool strips, bool trims_newline) {
    size_t end = pos + size;
    if (strips) {
      end = SkipSpace(end);
    } else if (trims_newline && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    line_starting_ = end > 0 && source_[end - 1] == '\n';
    MoveTo(end);
  }

  void Comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string::npos) Fail("line ", line_, ": missing end of comment tag");
    const char sign = end > pos_ ? source_[end - 1] : '\0';
    CloseTag(end, 2, sign == '-', sign != '+');
  }

  void Raw(size_t tag_end) {
    const bool strips = source_[tag_end] == '-';
    CloseTag(tag_end, strips ? 3 : 2, strips, false);
    for (size_t tag = source_.find("{%", pos_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      const size_t word = SkipSpace(tag + (sign == '-' || sign == '+' ? 3 : 2));
      if (!IsWord(word, "endraw")) continue;
      const size_t close = SkipSpace(word + 6);
      const bool end_signed = IsWord(close, "-%}") || IsWord(close, "+%}");
      if (!end_signed && !IsWord(close, "%}")) continue;
      EmitTrimmed(tag, '%', sign);
      CloseTag(close, end_signed ? 3 : 2, source_[close] == '-', source_[close] != '+');
      return;
    }
    Fail("line ", line_, ": missing end of raw tag");
  }

  // Reads the tokens of an expression or statement up to the end of its tag.
  void Inside(bool is_block) {
    const char end_char = is_block ? '%' : '}';
    std::string open;  // closing brackets that are expected, innermost last
    while (true) {
      MoveTo(SkipSpace(pos_));
      if (pos_ >= source_.size()) Fail("line ", line_, ": the template ends within a tag");
      const char c = source_[pos_];
      if (open.empty()) {
        const bool has_sign = (c == '-' || (is_block && c == '+')) && pos_ + 2 < source_.size() &&
                              source_[pos_ + 1] == end_char && source_[pos_ + 2] == '}';
        const bool plain = c == end_char && pos_ + 1 < source_.size() && source_[pos_ + 1] == '}';
        if (has_sign || plain) {
          Emit(is_block ? TokenType::kBlockEnd : TokenType::kVariableEnd, "");
          CloseTag(pos_, has_sign ? 3 : 2, c == '-', is_block && c != '+');
          return;
        }
      }
      if (std::isdigit(static_cast<unsigned char>(c))) {
        Number();
      } else if (std::isalpha(static_cast<unsigned char>(c)) || c == '_') {
        Name();
      } else if (c == '\'' || c == '"') {
        String();
      } else {
        Operator(open);
      }
    }
  }

  void Name() {
    size_t end = pos_;
    while (end < source_.size() &&
           (std::isalnum(static_cast<unsigned char>(source_[end])) || source_[end] == '_'))
      ++end;
    Emit(TokenType::kName, source_.substr(pos_, end - pos_));
    MoveTo(end);
  }

  void Number() {
    size_t end = pos_;
    auto digits = [&] {
      while (end < source_.size() &&
             (std::isdigit(static_cast<unsigned char>(source_[end])) || source_[end] == '_'))
        ++end;
    };
    auto digit_at = [&](size_t pos) {
      return pos < source_.size() && std::isdigit(static_cast<unsigned char>(source_[pos]));
    };
    digits();
    bool is_float = false;
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] | 0x20) == 'e') {
      const size_t exponent =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 2 : 1;
      if (digit_at(end + exponent)) {
        is_float = true;
        end += exponent;
        digits();
      }
    }
    std::string text = source_.substr(pos_, end - pos_);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    Emit(is_float ? TokenType::kFloat : TokenType::kInteger, std::move(text));
    MoveTo(end);
  }

  // The escapes are those of Python's string literals.
  void String() {
    const char quote = source_[pos_];
    std::string value;
    size_t i = pos_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 == source_.size()) {
        value += source_[i];
        continue;
      }
      const char c = source_[++i];
      constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (c == 'x' || c == 'u' || c == 'U') {
        i = CodePointEscape(i, c == 'x' ? 2 : c == 'u' ? 4 : 8, value);
      } else if (c == '\n') {
        continue;
      } else if (const size_t found = kFrom.find(c); found != kFrom.npos) {
        value += kTo[found];
      } else if (c >= '0' && c <= '7') {
        FailUnsupported("line ", line_, ": octal escape in a string");
      } else {
        value += {'\\', c};
      }
    }
    if (i >= source_.size()) Fail("line ", line_, ": a string does not end");
    Emit(TokenType::kString, std::move(value));
    MoveTo(i + 1);
  }

  // Reads \xNN, \uNNNN or \UNNNNNNNN, whose letter is at `letter`. Returns the position of the last
  // digit.
  size_t CodePointEscape(size_t letter, size_t digits, std::string& value) {
    char32_t code_point = 0;
    for (size_t i = letter + 1; i <= letter + digits; ++i) {
      const char c = i < source_.size() ? source_[i] : '\0';
      if (!std::isxdigit(static_cast<unsigned char>(c)))
        Fail("line ", line_, ": broken escape in a string");
      code_point = code_point * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000))
      Fail("line ", line_, ": escape of a code point that does not exist");
    AppendUtf8(code_point, value);
    return letter + digits;
  }

  void Operator(std::string& open) {
    static constexpr std::array<std::string_view, 7> kDouble = {
        "==", "!=", ">=", "<=", "//", "**", "&&"};
    std::string text(1, source_[pos_]);
    for (const std::string_view two : kDouble) {
      if (Rest().starts_with(two)) text = std::string(two);
    }
    constexpr std::string_view kSingle = "+-*/%~<>=.:|,;()[]{}";
    if (text == "&&" || (text.size() == 1 && kSingle.find(text[0]) == kSingle.npos)) {
      size_t end = pos_;
      NextCodePoint(source_, end);
      text = source_.substr(pos_, end - pos_);
      Fail("line ", line_, ": unexpected character '", text, "'");
    }
    const char c = text[0];
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) Fail("line ", line_, ": unexpected '", text, "'");
      open.pop_back();
    }
    Emit(TokenType::kOperator, text);
    MoveTo(pos_ + text.size());
  }

  const std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  // The previous tag ended a line, so white space at pos_ begins a line.
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) {
  if (const size_t bad = FindInvalidUtf8(source); bad != std::string_view::npos)
    Fail("the template is not valid UTF-8 at byte ", bad);
  return Lexer(source).Run();
}

}  // namespace apb::text::jinja
