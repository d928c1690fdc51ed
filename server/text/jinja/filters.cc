// jinja2's filters, with `tojson` as in transformers. Text keeps its origin through all of them.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/python_text.h"
#include "server/text/utf8.h"

namespace apb::text::jinja {
namespace {

void NeedDefined(const Value& input) {
  if (input.IsUndefined()) Fail("'", input.undefined_name(), "' is undefined");
}

// Applies a test by name to an item or its attribute; select and its kin pass on the items for
// which it holds.
bool Passes(const Value& item, const Arguments& arguments, size_t test_at) {
  if (arguments.positional.size() <= test_at) return item.Truth();
  const Value& name = arguments.positional[test_at];
  if (!name.IsString() || !IsKnownTest(name.bytes()))
    FailUnsupported("test '", ToText(name).bytes(), "'");
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + test_at + 1, arguments.positional.end());
  return ApplyTest(name.bytes(), item, rest);
}

// Follows a path such as "a.b", or an index.
Value PathOf(const Value& item, const Value& path) {
  if (!path.IsString()) return GetItem(item, path);
  Value at = item;
  const std::string& names = path.bytes();
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find('.', begin), names.size());
    const std::string part = names.substr(begin, end - begin);
    const bool number =
        !part.empty() && part.find_first_not_of("0123456789") == part.npos && part.size() < 10;
    at = GetItem(at, number ? Value::Int(std::stoi(part)) : Value::String(part));
    begin = end + 1;
  }
  return at;
}

Value Select(const Value& input, const Arguments& arguments, bool by_attribute, bool wanted) {
  std::vector<Value> kept;
  if (!input.Truth()) return Value::MakeGenerator({});  // None too
  for (Value& item : Iterate(input)) {
    const Value subject =
        by_attribute ? PathOf(item, arguments.Need(0, "attribute", "selectattr")) : item;
    if (Passes(subject, arguments, by_attribute ? 1 : 0) == wanted) kept.push_back(std::move(item));
  }
  return Value::MakeGenerator(std::move(kept));
}

Value Map(const Value& input, const Arguments& arguments) {
  std::vector<Value> results;
  if (!input.Truth()) return Value::MakeGenerator({});
  const Value* attribute = arguments.Find(SIZE_MAX, "attribute");
  const Value* fallback = arguments.Find(SIZE_MAX, "default");
  Arguments rest;
  if (attribute == nullptr) {
    const Value& name = arguments.Need(0, "filter", "map");
    if (!name.IsString() || !IsKnownFilter(name.bytes()))
      FailUnsupported("filter '", ToText(name).bytes(), "'");
    rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    rest.named = arguments.named;
  }
  for (const Value& item : Iterate(input)) {
    Value result = attribute != nullptr ? PathOf(item, *attribute)
                                        : ApplyFilter(arguments.positional[0].bytes(), item, rest);
    if (result.IsUndefined() && fallback != nullptr) result = *fallback;
    results.push_back(std::move(result));
  }
  return Value::MakeGenerator(std::move(results));
}

Value Join(const Value& input, const Arguments& arguments) {
  const Value* separator = arguments.Find(0, "d");
  const Value* attribute = arguments.Find(1, "attribute");
  const Text between = separator != nullptr ? ToText(*separator) : Text();
  Text joined;
  bool first = true;
  for (const Value& item : Iterate(input)) {
    if (!std::exchange(first, false)) joined.Append(between);
    joined.Append(ToText(attribute != nullptr ? PathOf(item, *attribute) : item));
  }
  return Value::String(std::move(joined));
}

Value ToJson(const Value& input, const Arguments& arguments) {
  JsonStyle style;
  if (const Value* ascii = arguments.Find(0, "ensure_ascii")) style.ensure_ascii = ascii->Truth();
  if (const Value* indent = arguments.Find(1, "indent"); indent != nullptr && !indent->IsNone()) {
    if (!indent->IsInteger()) FailUnsupported("tojson with an indent that is no integer");
    style.indent = static_cast<int>(std::clamp<int64_t>(indent->integer(), 0, 64));
    style.item_separator = ",";
  }
  if (const Value* separators = arguments.Find(2, "separators");
      separators != nullptr && !separators->IsNone()) {
    if (!separators->IsList() || separators->list().size() != 2)
      Fail("tojson: separators are two strings");
    style.item_separator = ToText(separators->list()[0]).bytes();
    style.key_separator = ToText(separators->list()[1]).bytes();
  }
  if (const Value* sorted = arguments.Find(3, "sort_keys")) style.sort_keys = sorted->Truth();
  return Value::String(Text(DumpJson(input, style), OriginOf(input)));
}

Value Items(const Value& input) {
  std::vector<Value> items;
  if (input.IsUndefined()) return Value::MakeList({});
  if (!input.IsDict()) Fail("Can only get item pairs from a mapping.");
  for (size_t i = 0; i < input.dict().items().size(); ++i)
    items.push_back(
        Value::MakeList({input.dict().Key(i), input.dict().items()[i].second}, /*is_tuple=*/true));
  return Value::MakeList(std::move(items));
}

// Strings are sorted without regard to case, unless case_sensitive.
Value SortKey(const Value& item, const Value* attribute, bool case_sensitive) {
  Value key = attribute != nullptr && !attribute->IsNone() ? PathOf(item, *attribute) : item;
  if (!case_sensitive && key.IsString()) return Value::String(MapCase(key.bytes(), Case::kLower));
  return key;
}

Value Sort(std::vector<Value> items, const Value* attribute, bool case_sensitive, bool reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items)
    keyed.emplace_back(SortKey(item, attribute, case_sensitive), std::move(item));
  // Items without an order make Less throw out of the sort, which never goes on with a broken
  // comparison.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    if (a.first.IsUndefined() && b.first.IsUndefined()) return false;
    return reverse ? Less(b.first, a.first) : Less(a.first, b.first);
  });
  std::vector<Value> sorted;
  for (auto& [key, item] : keyed) sorted.push_back(std::move(item));
  return Value::MakeList(std::move(sorted));
}

bool IsTrue(const Arguments& arguments, size_t index, std::string_view name) {
  const Value* found = arguments.Find(index, name);
  return found != nullptr && found->Truth();
}

Value DictSort(const Value& input, const Arguments& arguments) {
  NeedDefined(input);
  const Value* by = arguments.Find(1, "by");
  const bool by_value = by != nullptr && by->IsString() && by->bytes() == "value";
  const Value index = Value::Int(by_value ? 1 : 0);
  return Sort(Items(input).list(), &index, IsTrue(arguments, 0, "case_sensitive"),
              IsTrue(arguments, 2, "reverse"));
}

Value Unique(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Find(1, "attribute");
  std::vector<Value> kept, keys;
  for (Value& item : Iterate(input)) {
    Value key = SortKey(item, attribute, IsTrue(arguments, 0, "case_sensitive"));
    NeedHashable(key);
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return Equal(k, key); }))
      continue;
    keys.push_back(std::move(key));
    kept.push_back(std::move(item));
  }
  return Value::MakeGenerator(std::move(kept));
}

Value Extreme(const Value& input, const Arguments& arguments, bool largest) {
  const std::vector<Value> items = Iterate(input);
  if (items.empty()) return Value::MissingAttribute("item");
  const Value* attribute = arguments.Find(1, "attribute");
  const bool sensitive = IsTrue(arguments, 0, "case_sensitive");
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i) {
    const Value a = SortKey(items[i], attribute, sensitive),
                b = SortKey(items[best], attribute, sensitive);
    if (largest ? Less(b, a) : Less(a, b)) best = i;
  }
  return items[best];
}

Value Sum(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Find(0, "attribute");
  const Value* start = arguments.Find(1, "start");
  Value total = start != nullptr ? *start : Value::Int(0);
  for (const Value& item : Iterate(input))
    total = Arithmetic(
        "+", total, attribute != nullptr && !attribute->IsNone() ? PathOf(item, *attribute) : item);
  return total;
}

Value ToInt(const Value& input, const Arguments& arguments) {
  NeedDefined(input);
  const Value* fallback = arguments.Find(0, "default");
  const Value otherwise = fallback != nullptr ? *fallback : Value::Int(0);
  if (input.IsInteger()) return Value::Int(input.integer());
  double number = 0;
  if (input.Is<double>()) {
    number = input.number();
  } else if (input.IsString()) {
    const std::string text = Strip(input.text(), std::nullopt, true, true).bytes();
    int64_t integer = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), integer);
    if (error == std::errc() && end == text.data() + text.size()) return Value::Int(integer);
    auto [stop, wrong] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (wrong != std::errc() || stop != text.data() + text.size()) return otherwise;
  } else {
    return otherwise;
  }
  if (!(std::fabs(number) < 9e18)) return otherwise;
  return Value::Int(static_cast<int64_t>(number));
}

Value ToFloat(const Value& input, const Arguments& arguments) {
  NeedDefined(input);
  const Value* fallback = arguments.Find(0, "default");
  if (input.IsNumber()) return Value::Float(input.number());
  if (input.IsString()) {
    const std::string text = Strip(input.text(), std::nullopt, true, true).bytes();
    double number = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size()) return Value::Float(number);
  }
  return fallback != nullptr ? *fallback : Value::Float(0);
}

Value Round(const Value& input, const Arguments& arguments) {
  if (!input.IsNumber()) Fail("round needs a number, not ", input.TypeName());
  const Value* precision = arguments.Find(0, "precision");
  const Value* method = arguments.Find(1, "method");
  const double scale =
      precision != nullptr && precision->IsInteger() ? std::pow(10.0, precision->integer()) : 1.0;
  const double scaled = input.number() * scale;
  if (input.IsInteger() && method == nullptr) {
    if (precision != nullptr && (!precision->IsInteger() || precision->integer() < 0))
      FailUnsupported("round of an integer to tens");
    return Value::Int(input.integer());
  }
  const std::string how = method != nullptr && method->IsString() ? method->bytes() : "common";
  const double rounded = how == "ceil"    ? std::ceil(scaled)
                         : how == "floor" ? std::floor(scaled)
                                          : std::nearbyint(scaled);
  return Value::Float(rounded / scale);
}

Value Indent(const Value& input, const Arguments& arguments) {
  if (!input.IsString()) Fail("indent needs a string, not ", input.TypeName());
  const Value* width = arguments.Find(0, "width");
  Text prefix;
  if (width != nullptr && width->IsString()) {
    prefix = width->text();
  } else {
    const int64_t count = width != nullptr && width->IsInteger() ? width->integer() : 4;
    prefix = Text(std::string(std::clamp<int64_t>(count, 0, 1000), ' '));
  }
  Text source = input.text();
  source.Append("\n");
  const std::vector<Text> lines = SplitLines(source);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n");
    const bool wanted = i == 0 ? IsTrue(arguments, 1, "first")
                               : !lines[i].bytes().empty() || IsTrue(arguments, 2, "blank");
    if (wanted) out.Append(prefix);
    out.Append(lines[i]);
  }
  return Value::String(std::move(out));
}

Value Length(const Value& input) {
  if (input.IsString()) return Value::Int(CodePointOffsets(input.bytes()).size() - 1);
  if (input.IsList()) return Value::Int(input.list().size());
  if (input.IsDict()) return Value::Int(input.dict().items().size());
  if (input.IsUndefined()) return Value::Int(0);
  Fail("object of type '", input.TypeName(), "' has no len()");
}

Value Reverse(const Value& input) {
  if (input.IsString()) {
    const Value step = Value::Int(-1);
    return GetSlice(input, nullptr, nullptr, &step);
  }
  std::vector<Value> items = Iterate(input);
  std::reverse(items.begin(), items.end());
  return input.IsGenerator() ? Value::MakeList(std::move(items))
                             : Value::MakeGenerator(std::move(items));
}

Value Default(const Value& input, const Arguments& arguments) {
  const Value* fallback = arguments.Find(0, "default_value");
  if (!input.IsUndefined() && (input.Truth() || !IsTrue(arguments, 1, "boolean"))) return input;
  return fallback != nullptr ? *fallback : Value::String("");
}

Value End(const Value& input, bool last) {
  const std::vector<Value> items = Iterate(input);
  if (items.empty()) return Value::MissingAttribute("item");
  return last ? items.back() : items.front();
}

Value Absolute(const Value& input) {
  if (input.IsInteger() && input.integer() != INT64_MIN)
    return Value::Int(std::abs(input.integer()));
  if (input.Is<double>()) return Value::Float(std::fabs(input.number()));
  Fail("bad operand type for abs(): '", input.TypeName(), "'");
}

// The filters that are methods of strings too.
Value AsMethod(std::string_view method, const Value& input, const Arguments& arguments) {
  return CallMethod(method, input.IsString() ? input : Value::String(ToText(input)), arguments);
}

using Filter = Value (*)(const Value& input, const Arguments& arguments);
struct Entry {
  std::string_view name;
  Filter apply;
};

constexpr auto kFilters = std::to_array<Entry>({
    {"trim", [](const Value& v, const Arguments& a) { return AsMethod("strip", v, a); }},
    {"upper", [](const Value& v, const Arguments& a) { return AsMethod("upper", v, a); }},
    {"lower", [](const Value& v, const Arguments& a) { return AsMethod("lower", v, a); }},
    {"capitalize", [](const Value& v, const Arguments& a) { return AsMethod("capitalize", v, a); }},
    {"replace", [](const Value& v, const Arguments& a) { return AsMethod("replace", v, a); }},
    {"string", [](const Value& v, const Arguments&) { return Value::String(ToText(v)); }},
    {"safe", [](const Value& v, const Arguments&) { return Value::String(ToText(v)); }},
    {"length", [](const Value& v, const Arguments&) { return Length(v); }},
    {"count", [](const Value& v, const Arguments&) { return Length(v); }},
    {"list", [](const Value& v, const Arguments&) { return Value::MakeList(Iterate(v)); }},
    {"first", [](const Value& v, const Arguments&) { return End(v, false); }},
    {"last", [](const Value& v, const Arguments&) { return End(v, true); }},
    {"reverse", [](const Value& v, const Arguments&) { return Reverse(v); }},
    {"items",
     [](const Value& v, const Arguments&) { return Value::MakeGenerator(Items(v).list()); }},
    {"abs", [](const Value& v, const Arguments&) { return Absolute(v); }},
    {"default", Default},
    {"d", Default},
    {"join", Join},
    {"tojson", ToJson},
    {"map", Map},
    {"select", [](const Value& v, const Arguments& a) { return Select(v, a, false, true); }},
    {"reject", [](const Value& v, const Arguments& a) { return Select(v, a, false, false); }},
    {"selectattr", [](const Value& v, const Arguments& a) { return Select(v, a, true, true); }},
    {"rejectattr", [](const Value& v, const Arguments& a) { return Select(v, a, true, false); }},
    {"dictsort", DictSort},
    {"sort",
     [](const Value& v, const Arguments& a) {
       return Sort(Iterate(v), a.Find(2, "attribute"), IsTrue(a, 1, "case_sensitive"), IsTrue(a, 0, "reverse"));
     }},
    {"unique", Unique},
    {"min", [](const Value& v, const Arguments& a) { return Extreme(v, a, false); }},
    {"max", [](const Value& v, const Arguments& a) { return Extreme(v, a, true); }},
    {"sum", Sum},
    {"int", ToInt},
    {"float", ToFloat},
    {"round", Round},
    {"indent", Indent},
});

const Entry* FindFilter(std::string_view name) {
  const auto* found = std::find_if(kFilters.begin(), kFilters.end(),
                                   [&](const Entry& entry) { return entry.name == name; });
  return found == kFilters.end() ? nullptr : found;
}

}  // namespace

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value& Arguments::Need(size_t index, std::string_view name, std::string_view what) const {
  if (const Value* found = Find(index, name)) return *found;
  Fail(std::string(what), ": argument '", std::string(name), "' is missing");
}

bool IsKnownFilter(std::string_view name) { return FindFilter(name) != nullptr; }

Value ApplyFilter(std::string_view name, const Value& input, const Arguments& arguments) {
  const Entry* filter = FindFilter(name);
  if (filter == nullptr) FailUnsupported("filter '", std::string(name), "' is not supported");
  return filter->apply(input, arguments);
}

}  // namespace apb::text::jinja
