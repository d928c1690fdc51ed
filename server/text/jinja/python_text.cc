// The details follow CPython: shortest floats, the escapes of repr(), the separators of
// json.dumps().
#include "server/text/jinja/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_format.h"
#include "server/text/jinja/error.h"
#include "server/text/utf8.h"

namespace apb::text::jinja {
namespace {

bool IsPrintable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

std::string ReprString(std::string_view text) {
  const bool double_quotes = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      AppendUtf8(c, out);
    } else if (c < 0x100) {
      out += absl::StrFormat("\\x%02x", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += absl::StrFormat("\\u%04x", static_cast<uint32_t>(c));
    } else {
      out += absl::StrFormat("\\U%08x", static_cast<uint32_t>(c));
    }
  }
  return out + quote;
}

void AppendRepr(const Value& value, std::string& out);

void AppendScalar(const Value& value, std::string& out) {
  if (value.IsNone()) {
    out += "None";
  } else if (value.Is<bool>()) {
    out += value.integer() != 0 ? "True" : "False";
  } else if (value.Is<int64_t>()) {
    out += std::to_string(value.integer());
  } else if (value.Is<double>()) {
    out += FloatText(value.number());
  } else if (!value.IsUndefined()) {
    Fail("a ", value.TypeName(), " cannot be printed");
  }
}

void AppendRepr(const Value& value, std::string& out) {
  if (value.IsString()) {
    out += ReprString(value.bytes());
  } else if (value.IsList()) {
    out += value.is_tuple() ? "(" : "[";
    const char* separator = "";
    for (const Value& item : value.list()) {
      out += std::exchange(separator, ", ");
      AppendRepr(item, out);
    }
    if (value.is_tuple() && value.list().size() == 1) out += ",";
    out += value.is_tuple() ? ")" : "]";
  } else if (value.IsDict()) {
    out += "{";
    const char* separator = "";
    for (const auto& [key, item] : value.dict().items()) {
      out += std::exchange(separator, ", ");
      out += ReprString(key) + ": ";
      AppendRepr(item, out);
    }
    out += "}";
  } else if (value.IsUndefined()) {
    out += "Undefined";
  } else {
    AppendScalar(value, out);
  }
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string& out) {
  out += '"';
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, pos);
    constexpr std::string_view kNamed = "\"\\\n\r\t\b\f";
    constexpr std::string_view kLetters = "\"\\nrtbf";
    if (const size_t named = c < 0x80 ? kNamed.find(static_cast<char>(c)) : kNamed.npos;
        named != kNamed.npos) {
      out += {'\\', kLetters[named]};
    } else if (c < 0x20 || (ensure_ascii && c > 0x7E && c < 0x10000)) {
      out += absl::StrFormat("\\u%04x", static_cast<uint32_t>(c));
    } else if (ensure_ascii && c >= 0x10000) {
      const uint32_t v = static_cast<uint32_t>(c) - 0x10000;
      out += absl::StrFormat("\\u%04x\\u%04x", 0xD800 + (v >> 10), 0xDC00 + (v & 0x3FF));
    } else {
      AppendUtf8(c, out);
    }
  }
  out += '"';
}

void AppendLineBreak(const JsonStyle& style, int level, std::string& out) {
  if (style.indent < 0) return;
  out += '\n';
  out.append(static_cast<size_t>(style.indent) * level, ' ');
}

void AppendJson(const Value& value, const JsonStyle& style, int level, std::string& out) {
  const bool is_dict = value.IsDict();
  if (value.IsString()) return AppendJsonString(value.bytes(), style.ensure_ascii, out);
  if (value.IsNone()) {
    out += "null";
  } else if (value.Is<bool>()) {
    out += value.integer() != 0 ? "true" : "false";
  } else if (value.IsNumber()) {
    if (value.Is<double>() && !std::isfinite(value.number())) {
      out += std::isnan(value.number()) ? "NaN" : value.number() > 0 ? "Infinity" : "-Infinity";
    } else {
      AppendScalar(value, out);
    }
  } else if (value.IsList() || is_dict) {
    std::vector<std::pair<const std::string*, const Value*>> items;
    if (is_dict) {
      for (const auto& [key, item] : value.dict().items()) items.emplace_back(&key, &item);
    } else {
      for (const Value& item : value.list()) items.emplace_back(nullptr, &item);
    }
    if (is_dict && style.sort_keys)
      std::sort(items.begin(), items.end(),
                [](const auto& a, const auto& b) { return *a.first < *b.first; });
    out += is_dict ? '{' : '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += style.item_separator;
      AppendLineBreak(style, level + 1, out);
      if (is_dict) {
        AppendJsonString(*items[i].first, style.ensure_ascii, out);
        out += style.key_separator;
      }
      AppendJson(*items[i].second, style, level + 1, out);
    }
    if (!items.empty()) AppendLineBreak(style, level, out);
    out += is_dict ? '}' : ']';
  } else {
    Fail("Object of type ", value.TypeName(), " is not JSON serializable");
  }
}

}  // namespace

std::string FloatText(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto shortest =
      std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::scientific);
  const std::string scientific(buffer, shortest.ptr);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (number != 0 && (exponent < -4 || exponent >= 16)) return scientific;
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::fixed);
  std::string text(buffer, fixed.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

Text ToText(const Value& value) {
  if (value.IsString()) return value.text();
  std::string out;
  if (value.IsList() || value.IsDict()) {
    AppendRepr(value, out);
    return Text(std::move(out), OriginOf(value));
  }
  AppendScalar(value, out);
  return Text(std::move(out));
}

std::string DumpJson(const Value& value, const JsonStyle& style) {
  std::string out;
  AppendJson(value, style, 0, out);
  return out;
}

bool IsPythonSpace(char32_t c) { return IsWhitespace(c) || (c >= 0x1C && c <= 0x1F); }

Text Strip(const Text& text, const std::optional<std::string>& characters, bool left, bool right) {
  const std::string& bytes = text.bytes();
  auto drop = [&](std::string_view character) {
    size_t pos = 0;
    return characters ? characters->find(character) != std::string::npos
                      : IsPythonSpace(NextCodePoint(character, pos));
  };
  size_t begin = 0, end = bytes.size();
  while (left && begin < end) {
    size_t next = begin;
    NextCodePoint(bytes, next);
    if (!drop(std::string_view(bytes).substr(begin, next - begin))) break;
    begin = next;
  }
  while (right && end > begin) {
    size_t previous = end;
    PreviousCodePoint(bytes, previous);
    if (!drop(std::string_view(bytes).substr(previous, end - previous))) break;
    end = previous;
  }
  return text.Substr(begin, end);
}

std::vector<size_t> CodePointOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t pos = 0; pos < text.size(); NextCodePoint(text, pos)) offsets.push_back(pos);
  offsets.push_back(text.size());
  return offsets;
}

std::string MapCase(std::string_view text, Case target) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = NextCodePoint(text, pos);
    const auto point = static_cast<utf8proc_int32_t>(c);
    if (target == Case::kUpper && c == 0xDF) {
      out += "SS";
    } else if (target == Case::kLower && c == 0x130) {
      out += "i\xCC\x87";
    } else {
      AppendUtf8(static_cast<char32_t>(target == Case::kUpper ? utf8proc_toupper(point)
                                                              : utf8proc_tolower(point)),
                 out);
    }
  }
  return out;
}

std::vector<Text> SplitLines(const Text& text) {
  const std::string& bytes = text.bytes();
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < bytes.size();) {
    const size_t end = pos;
    const char32_t c = NextCodePoint(bytes, pos);
    if (!((c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
          c == 0x2029))
      continue;
    lines.push_back(text.Substr(begin, end));
    if (c == '\r' && pos < bytes.size() && bytes[pos] == '\n') ++pos;
    begin = pos;
  }
  if (begin < bytes.size()) lines.push_back(text.Substr(begin, bytes.size()));
  return lines;
}

}  // namespace apb::text::jinja
