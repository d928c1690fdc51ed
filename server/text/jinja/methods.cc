// The methods of strings, dictionaries and lists, and the functions that templates call by name.
#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/python_text.h"
#include "server/text/utf8.h"

namespace apb::text::jinja {
namespace {

constexpr int64_t kMaxRange = 1'000'000;

const Text& NeedText(const Arguments& arguments, size_t index, std::string_view name,
                     std::string_view what) {
  const Value& value = arguments.Need(index, name, what);
  if (!value.IsString())
    Fail(std::string(what), ": argument '", std::string(name), "' must be a string");
  return value.text();
}

// Changes the text separately between the borders of its origins, so that each piece keeps its
// origin.
template <typename Change>
Text MapPieces(const Text& text, Change change) {
  Text out;
  size_t done = 0;
  auto add = [&](size_t end, const std::optional<Origin>& origin) {
    if (end > done)
      out.Append(Text(change(std::string_view(text.bytes()).substr(done, end - done)), origin));
    done = end;
  };
  for (const Text::Span& span : text.spans()) {
    add(span.begin, std::nullopt);
    add(span.end, span.origin);
  }
  add(text.bytes().size(), std::nullopt);
  return out;
}

bool IsLetter(char32_t c) { return IsWordCharacter(c) && !IsNumeric(c) && c != '_'; }

Text Title(const Text& text, bool each_word) {
  bool in_word = false;
  return MapPieces(text, [&](std::string_view piece) {
    std::string out;
    for (size_t pos = 0; pos < piece.size();) {
      const size_t begin = pos;
      const char32_t c = NextCodePoint(piece, pos);
      out += MapCase(piece.substr(begin, pos - begin), in_word ? Case::kLower : Case::kUpper);
      in_word = each_word ? IsLetter(c) : true;
    }
    return out;
  });
}

Value ReplaceIn(const Text& text, const Arguments& arguments) {
  const Text& old = NeedText(arguments, 0, "old", "replace");
  const Text& with = NeedText(arguments, 1, "new", "replace");
  const Value* limit = arguments.Find(2, "count");
  int64_t left = limit != nullptr && limit->IsInteger() && limit->integer() >= 0 ? limit->integer()
                                                                                 : INT64_MAX;
  const std::string& bytes = text.bytes();
  Text out;
  size_t done = 0;
  if (old.bytes().empty()) {
    for (size_t offset : CodePointOffsets(bytes)) {
      out.Append(text.Substr(done, offset));
      done = offset;
      if (left-- > 0) out.Append(with);
    }
    return Value::String(std::move(out));
  }
  for (size_t at = bytes.find(old.bytes()); at != std::string::npos && left-- > 0;
       at = bytes.find(old.bytes(), done)) {
    out.Append(text.Substr(done, at));
    out.Append(with);
    done = at + old.bytes().size();
  }
  out.Append(text.Substr(done, bytes.size()));
  return Value::String(std::move(out));
}

// str.split() without a separator: splits at runs of white space, and ignores those at the ends.
std::vector<Value> SplitSpace(const Text& text, int64_t limit) {
  std::vector<Value> parts;
  Text rest = Strip(text, std::nullopt, true, false);
  while (!rest.bytes().empty()) {
    size_t end = 0;
    for (size_t pos = 0; end < rest.bytes().size(); end = pos) {
      if (IsPythonSpace(NextCodePoint(rest.bytes(), pos))) break;
    }
    if (limit-- == 0) {
      parts.push_back(Value::String(rest));
      break;
    }
    parts.push_back(Value::String(rest.Substr(0, end)));
    rest = Strip(rest.Substr(end, rest.bytes().size()), std::nullopt, true, false);
  }
  return parts;
}

Value Split(const Text& text, const Arguments& arguments, bool from_right) {
  const Value* separator = arguments.Find(0, "sep");
  const Value* most = arguments.Find(1, "maxsplit");
  const int64_t limit = most != nullptr && most->IsInteger() ? most->integer() : -1;
  if (separator == nullptr || separator->IsNone()) {
    if (from_right && limit >= 0)
      FailUnsupported("rsplit by white space with a limit is not supported");
    return Value::MakeList(SplitSpace(text, limit));
  }
  if (!separator->IsString() || separator->bytes().empty())
    Fail("split: the separator must be a string, not empty");
  const std::string &bytes = text.bytes(), &by = separator->bytes();
  std::vector<Value> parts;
  if (from_right && limit >= 0) {
    size_t end = bytes.size();
    for (int64_t i = 0; i < limit && end >= by.size(); ++i) {
      const size_t at = bytes.rfind(by, end - by.size());
      if (at == std::string::npos) break;
      parts.push_back(Value::String(text.Substr(at + by.size(), end)));
      end = at;
    }
    parts.push_back(Value::String(text.Substr(0, end)));
    std::reverse(parts.begin(), parts.end());
    return Value::MakeList(std::move(parts));
  }
  size_t begin = 0;
  for (int64_t i = 0; limit < 0 || i < limit; ++i) {
    const size_t at = bytes.find(by, begin);
    if (at == std::string::npos) break;
    parts.push_back(Value::String(text.Substr(begin, at)));
    begin = at + by.size();
  }
  parts.push_back(Value::String(text.Substr(begin, bytes.size())));
  return Value::MakeList(std::move(parts));
}

Value StripMethod(const Text& text, const Arguments& arguments, bool left, bool right) {
  const Value* characters = arguments.Find(0, "chars");
  std::optional<std::string> wanted;
  if (characters != nullptr && !characters->IsNone())
    wanted = NeedText(arguments, 0, "chars", "strip").bytes();
  return Value::String(Strip(text, wanted, left, right));
}

Value HasAffix(const Text& text, const Arguments& arguments, bool prefix) {
  const Value& affix = arguments.Need(0, "affix", prefix ? "startswith" : "endswith");
  std::vector<Value> options = affix.IsList() ? affix.list() : std::vector<Value>{affix};
  return Value::Bool(std::any_of(options.begin(), options.end(), [&](const Value& option) {
    if (!option.IsString()) Fail("startswith and endswith need strings");
    return prefix ? text.bytes().starts_with(option.bytes())
                  : text.bytes().ends_with(option.bytes());
  }));
}

Value FindIn(const Text& text, const Arguments& arguments, bool last) {
  const std::string& wanted = NeedText(arguments, 0, "sub", "find").bytes();
  const size_t at = last ? text.bytes().rfind(wanted) : text.bytes().find(wanted);
  if (at == std::string::npos) return Value::Int(-1);
  return Value::Int(CodePointOffsets(std::string_view(text.bytes()).substr(0, at)).size() - 1);
}

Value CountIn(const Text& text, const Arguments& arguments) {
  const std::string& wanted = NeedText(arguments, 0, "sub", "count").bytes();
  if (wanted.empty()) return Value::Int(CodePointOffsets(text.bytes()).size());
  int64_t count = 0;
  for (size_t at = text.bytes().find(wanted); at != std::string::npos;
       at = text.bytes().find(wanted, at + wanted.size()))
    ++count;
  return Value::Int(count);
}

template <typename Predicate>
Value All(const Text& text, Predicate predicate) {
  bool all = !text.bytes().empty();
  for (size_t pos = 0; all && pos < text.bytes().size();)
    all = predicate(NextCodePoint(text.bytes(), pos));
  return Value::Bool(all);
}

Value JoinWith(const Text& separator, const Arguments& arguments) {
  Text joined;
  bool first = true;
  for (const Value& item : Iterate(arguments.Need(0, "iterable", "join"))) {
    if (!item.IsString()) Fail("join: expected str instance, ", item.TypeName(), " found");
    if (!std::exchange(first, false)) joined.Append(separator);
    joined.Append(item.text());
  }
  return Value::String(std::move(joined));
}

using StringMethod = Value (*)(const Text& text, const Arguments& arguments);
struct Entry {
  std::string_view name;
  StringMethod call;
};

constexpr auto kStringMethods = std::to_array<Entry>({
    {"strip", [](const Text& t, const Arguments& a) { return StripMethod(t, a, true, true); }},
    {"lstrip", [](const Text& t, const Arguments& a) { return StripMethod(t, a, true, false); }},
    {"rstrip", [](const Text& t, const Arguments& a) { return StripMethod(t, a, false, true); }},
    {"split", [](const Text& t, const Arguments& a) { return Split(t, a, false); }},
    {"rsplit", [](const Text& t, const Arguments& a) { return Split(t, a, true); }},
    {"splitlines",
     [](const Text& t, const Arguments&) {
       std::vector<Value> lines;
       for (Text& line : SplitLines(t)) lines.push_back(Value::String(std::move(line)));
       return Value::MakeList(std::move(lines));
     }},
    {"upper",
     [](const Text& t, const Arguments&) {
       return Value::String(
           MapPieces(t, [](std::string_view s) { return MapCase(s, Case::kUpper); }));
     }},
    {"lower",
     [](const Text& t, const Arguments&) {
       return Value::String(
           MapPieces(t, [](std::string_view s) { return MapCase(s, Case::kLower); }));
     }},
    {"title", [](const Text& t, const Arguments&) { return Value::String(Title(t, true)); }},
    {"capitalize", [](const Text& t, const Arguments&) { return Value::String(Title(t, false)); }},
    {"startswith", [](const Text& t, const Arguments& a) { return HasAffix(t, a, true); }},
    {"endswith", [](const Text& t, const Arguments& a) { return HasAffix(t, a, false); }},
    {"replace", ReplaceIn},
    {"find", [](const Text& t, const Arguments& a) { return FindIn(t, a, false); }},
    {"rfind", [](const Text& t, const Arguments& a) { return FindIn(t, a, true); }},
    {"count", CountIn},
    {"join", JoinWith},
    {"isdigit",
     [](const Text& t,
        const Arguments&) { return All(t, [](char32_t c) { return c >= '0' && c <= '9'; }); }},
    {"isalpha", [](const Text& t, const Arguments&) { return All(t, IsLetter); }},
    {"isspace", [](const Text& t, const Arguments&) { return All(t, IsPythonSpace); }},
});

constexpr std::string_view kDictMethods[] = {"items", "keys", "values", "get"};

// These methods change lists or dictionaries. transformers' sandbox refuses them when they are
// called.
constexpr std::string_view kChangingMethods[] = {"append", "clear",   "extend",    "insert",
                                                 "pop",    "popitem", "remove",    "reverse",
                                                 "sort",   "update",  "setdefault"};

const Entry* FindStringMethod(std::string_view name) {
  const auto* found = std::find_if(kStringMethods.begin(), kStringMethods.end(),
                                   [&](const Entry& entry) { return entry.name == name; });
  return found == kStringMethods.end() ? nullptr : found;
}

Value CallDictMethod(std::string_view name, const Value& object, const Arguments& arguments) {
  if (name == "get") {
    const Value& key = arguments.Need(0, "key", "get");
    const Value* found = key.IsString() ? object.dict().Find(key.bytes()) : nullptr;
    if (found != nullptr) return *found;
    const Value* fallback = arguments.Find(1, "default");
    return fallback != nullptr ? *fallback : Value::MakeNone();
  }
  if (name == "items") return Value::MakeList(Iterate(ApplyFilter("items", object, {})));
  if (name == "keys") return Value::MakeList(Iterate(object));
  std::vector<Value> values;
  for (const auto& item : object.dict().items()) values.push_back(item.second);
  return Value::MakeList(std::move(values));
}

Value CallListMethod(std::string_view name, const Value& object, const Arguments& arguments) {
  const Value& wanted = arguments.Need(0, "value", name);
  const auto& items = object.list();
  auto equal = [&](const Value& item) { return Equal(item, wanted); };
  if (name == "count") return Value::Int(std::count_if(items.begin(), items.end(), equal));
  const auto at = std::find_if(items.begin(), items.end(), equal);
  if (at == items.end()) Fail("the value is not in the list");
  return Value::Int(at - items.begin());
}

Value Range(const Arguments& arguments) {
  int64_t numbers[3] = {0, 0, 1};
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) Fail("range takes one to three numbers");
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i].IsInteger()) Fail("range takes integers");
    numbers[given.size() == 1 ? 1 : i] = given[i].integer();
  }
  const auto [begin, end, step] = numbers;
  if (step == 0) Fail("range: the step is zero");
  std::vector<Value> items;
  for (__int128 i = begin; step > 0 ? i < end : i > end; i += step) {
    if (items.size() >= kMaxRange) Fail("range has more than ", kMaxRange, " numbers");
    items.push_back(Value::Int(static_cast<int64_t>(i)));
  }
  return Value::MakeList(std::move(items));
}

Value StrftimeNow(const Arguments& arguments, absl::Time now) {
  const std::string& format = NeedText(arguments, 0, "format", "strftime_now").bytes();
  return Value::String(absl::FormatTime(format, now, absl::LocalTimeZone()));
}

}  // namespace

bool IsDictMethod(std::string_view name) {
  return std::find(std::begin(kDictMethods), std::end(kDictMethods), name) !=
         std::end(kDictMethods);
}

bool IsKnownMethod(std::string_view name) {
  return FindStringMethod(name) != nullptr || IsDictMethod(name) || name == "index" ||
         std::ranges::find(kChangingMethods, name) != std::end(kChangingMethods);
}

Value CallMethod(std::string_view name, const Value& object, const Arguments& arguments) {
  if (object.IsString()) {
    if (const Entry* method = FindStringMethod(name)) return method->call(object.text(), arguments);
  }
  if (object.IsDict() && IsDictMethod(name)) return CallDictMethod(name, object, arguments);
  if (object.IsList() && (name == "index" || name == "count"))
    return CallListMethod(name, object, arguments);
  if (object.IsUndefined()) Fail("'", object.undefined_name(), "' is undefined");
  Fail("'", object.TypeName(), "' object has no method '", std::string(name), "'");
}

bool IsUnsupportedGlobal(std::string_view name) {
  return name == "cycler" || name == "joiner" || name == "lipsum" || name == "caller" ||
         name == "super";
}

bool IsGlobalFunction(std::string_view name) {
  for (std::string_view known : {"range", "namespace", "dict", "strftime_now", "raise_exception"}) {
    if (name == known) return true;
  }
  return false;
}

Value CallGlobal(std::string_view name, const Arguments& arguments, absl::Time now) {
  if (name == "range") return Range(arguments);
  if (name == "strftime_now") return StrftimeNow(arguments, now);
  if (name == "raise_exception")
    Fail(ToText(arguments.Need(0, "message", "raise_exception")).bytes());
  Dict fields;
  if (!arguments.positional.empty()) {
    if (!arguments.positional[0].IsDict())
      FailUnsupported(std::string(name), " of something that is no mapping");
    fields = arguments.positional[0].dict();
  }
  for (const auto& [key, value] : arguments.named) fields.Set(key, value);
  if (name == "dict") return Value::MakeDict(std::move(fields));
  return Value(Value::Variant(std::make_shared<Namespace>(Namespace{std::move(fields)})));
}

}  // namespace apb::text::jinja
