// The tests: the names that may follow "is".
#include <algorithm>
#include <array>
#include <cmath>

#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/python_text.h"

namespace apb::text::jinja {
namespace {

const Value& Other(const Arguments& arguments) {
  return arguments.Need(0, "other", "a test that compares");
}

double Remainder(const Value& value, int64_t divisor) {
  if (value.Is<double>() && divisor != 0)
    return std::fmod(value.number(), static_cast<double>(divisor));
  if (!value.IsInteger()) Fail("a number is tested that is a ", value.TypeName());
  if (divisor == 0) Fail("division by zero");
  return divisor == -1 ? 0 : static_cast<double>(value.integer() % divisor);
}

int64_t Divisor(const Arguments& arguments) {
  const Value& divisor = arguments.Need(0, "num", "divisibleby");
  if (!divisor.IsInteger()) Fail("divisibleby needs an integer");
  return divisor.integer();
}

bool IsCase(const Value& value, Case wanted) {
  const std::string text = ToText(value).bytes();
  const Case other = wanted == Case::kUpper ? Case::kLower : Case::kUpper;
  return MapCase(text, wanted) == text && MapCase(text, other) != text;
}

bool IsSequence(const Value& value) {
  return value.IsString() || value.IsList() || value.IsDict() || value.IsUndefined();
}

bool Same(const Value& a, const Value& b) {
  if (a.Is<bool>() != b.Is<bool>() || a.Is<double>() != b.Is<double>()) return false;
  return Equal(a, b);
}

using Test = bool (*)(const Value& value, const Arguments& arguments);
struct Entry {
  std::string_view name;
  Test holds;
};

constexpr Test kEqual = [](const Value& v, const Arguments& a) { return Equal(v, Other(a)); };
constexpr Test kNotEqual = [](const Value& v, const Arguments& a) { return !Equal(v, Other(a)); };
constexpr Test kLess = [](const Value& v, const Arguments& a) { return Less(v, Other(a)); };
constexpr Test kGreater = [](const Value& v, const Arguments& a) { return Less(Other(a), v); };
constexpr Test kAtMost = [](const Value& v, const Arguments& a) { return !Less(Other(a), v); };
constexpr Test kAtLeast = [](const Value& v, const Arguments& a) { return !Less(v, Other(a)); };

constexpr auto kTests = std::to_array<Entry>({
    {"defined", [](const Value& v, const Arguments&) { return !v.IsUndefined(); }},
    {"undefined", [](const Value& v, const Arguments&) { return v.IsUndefined(); }},
    {"none", [](const Value& v, const Arguments&) { return v.IsNone(); }},
    {"string", [](const Value& v, const Arguments&) { return v.IsString(); }},
    {"mapping", [](const Value& v, const Arguments&) { return v.IsDict(); }},
    {"sequence", [](const Value& v, const Arguments&) { return IsSequence(v); }},
    {"iterable", [](const Value& v, const Arguments&) { return IsSequence(v) || v.IsGenerator(); }},
    {"callable",
     [](const Value& v, const Arguments&) { return v.Is<Function>() || v.IsUndefined(); }},
    {"number", [](const Value& v, const Arguments&) { return v.IsNumber(); }},
    {"integer", [](const Value& v, const Arguments&) { return v.Is<int64_t>(); }},
    {"float", [](const Value& v, const Arguments&) { return v.Is<double>(); }},
    {"boolean", [](const Value& v, const Arguments&) { return v.Is<bool>(); }},
    {"true", [](const Value& v, const Arguments&) { return v.Is<bool>() && v.Truth(); }},
    {"false", [](const Value& v, const Arguments&) { return v.Is<bool>() && !v.Truth(); }},
    {"odd", [](const Value& v, const Arguments&) { return std::fabs(Remainder(v, 2)) == 1; }},
    {"even", [](const Value& v, const Arguments&) { return Remainder(v, 2) == 0; }},
    {"divisibleby",
     [](const Value& v, const Arguments& a) { return Remainder(v, Divisor(a)) == 0; }},
    {"lower", [](const Value& v, const Arguments&) { return IsCase(v, Case::kLower); }},
    {"upper", [](const Value& v, const Arguments&) { return IsCase(v, Case::kUpper); }},
    {"in", [](const Value& v, const Arguments& a) { return Contains(Other(a), v); }},
    {"sameas", [](const Value& v, const Arguments& a) { return Same(v, Other(a)); }},
    {"eq", kEqual},
    {"equalto", kEqual},
    {"==", kEqual},
    {"ne", kNotEqual},
    {"!=", kNotEqual},
    {"lt", kLess},
    {"lessthan", kLess},
    {"<", kLess},
    {"gt", kGreater},
    {"greaterthan", kGreater},
    {">", kGreater},
    {"le", kAtMost},
    {"<=", kAtMost},
    {"ge", kAtLeast},
    {">=", kAtLeast},
});

const Entry* FindTest(std::string_view name) {
  const auto* found = std::find_if(kTests.begin(), kTests.end(),
                                   [&](const Entry& entry) { return entry.name == name; });
  return found == kTests.end() ? nullptr : found;
}

}  // namespace

bool IsKnownTest(std::string_view name) { return FindTest(name) != nullptr; }

bool ApplyTest(std::string_view name, const Value& input, const Arguments& arguments) {
  const Entry* test = FindTest(name);
  if (test == nullptr) FailUnsupported("test '", std::string(name), "' is not supported");
  return test->holds(input, arguments);
}

}  // namespace apb::text::jinja
