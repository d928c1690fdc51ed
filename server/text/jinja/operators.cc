// Integers that leave 64 bits are errors. Python's integers grow instead, but no template needs
// that.
#include "server/text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/python_text.h"

namespace apb::text::jinja {
namespace {

constexpr int64_t kMaxRepeatedBytes = 1 << 24;

[[noreturn]] void FailOperands(std::string_view op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b}) {
    if (side->IsUndefined()) Fail("'", side->undefined_name(), "' is undefined");
  }
  Fail("unsupported operand types for ", std::string(op), ": '", a.TypeName(), "' and '",
       b.TypeName(), "'");
}

int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t q = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? q - 1 : q;
}

Value IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    if (b < 0) return Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
    result = 1;
    for (; b > 0 && !overflow; b /= 2) {  // by squaring
      if (b % 2 != 0) overflow = __builtin_mul_overflow(result, a, &result);
      if (b > 1) overflow |= __builtin_mul_overflow(a, a, &a);
    }
  } else {
    if (b == 0) Fail("division by zero");
    if (op == "/") return Value::Float(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) return IntegerArithmetic(op == "//" ? "*" : "-", a, op == "//" ? -1 : a);
    result = op == "//" ? FloorDivide(a, b) : a - FloorDivide(a, b) * b;
  }
  if (overflow) Fail("a number leaves 64 bits");
  return Value::Int(result);
}

Value FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value::Float(a + b);
  if (op == "-") return Value::Float(a - b);
  if (op == "*") return Value::Float(a * b);
  if (op == "**") return Value::Float(std::pow(a, b));
  if (b == 0) Fail("division by zero");
  if (op == "/") return Value::Float(a / b);
  const double floor = std::floor(a / b);
  return Value::Float(op == "//" ? floor : a - floor * b);
}

Value Repeat(const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const int64_t size = sequence.IsString() ? sequence.bytes().size() : sequence.list().size();
  if (size * static_cast<double>(count) > kMaxRepeatedBytes) Fail("a repeated value is too long");
  if (sequence.IsString()) {
    Text text;
    for (int64_t i = 0; i < count; ++i) text.Append(sequence.text());
    return Value::String(std::move(text));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < count; ++i)
    items.insert(items.end(), sequence.list().begin(), sequence.list().end());
  return Value::MakeList(std::move(items), sequence.is_tuple());
}

Value LoopField(const Loop& loop, std::string_view name) {
  const auto& items = loop.list->items;
  const int64_t size = items.size(), at = loop.index;
  if (name == "index") return Value::Int(at + 1);
  if (name == "index0") return Value::Int(at);
  if (name == "revindex") return Value::Int(size - at);
  if (name == "revindex0") return Value::Int(size - at - 1);
  if (name == "first") return Value::Bool(at == 0);
  if (name == "last") return Value::Bool(at + 1 == size);
  if (name == "length") return Value::Int(size);
  if (name == "depth") return Value::Int(loop.depth);
  if (name == "depth0") return Value::Int(loop.depth - 1);
  if (name == "previtem") return at > 0 ? items[at - 1] : Value::MissingAttribute("previtem");
  if (name == "nextitem")
    return at + 1 < size ? items[at + 1] : Value::MissingAttribute("nextitem");
  return Value::MissingAttribute(std::string(name));
}

// An index that may count from the end; nullopt if it is out of range.
std::optional<size_t> Position(int64_t index, size_t size) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

int64_t SliceBound(const Value* bound, int64_t size, int64_t step, int64_t fallback) {
  if (bound == nullptr || bound->IsNone()) return fallback;
  if (!bound->IsInteger()) Fail("slice indices must be integers or None");
  int64_t at = bound->integer();
  if (at < 0) at += size;
  return step > 0 ? std::clamp<int64_t>(at, 0, size) : std::clamp<int64_t>(at, -1, size - 1);
}

}  // namespace

Value Arithmetic(std::string_view op, const Value& a, const Value& b) {
  if (a.IsInteger() && b.IsInteger()) return IntegerArithmetic(op, a.integer(), b.integer());
  if (a.IsNumber() && b.IsNumber()) return FloatArithmetic(op, a.number(), b.number());
  if (op == "+" && a.IsString() && b.IsString()) {
    Text text = a.text();
    text.Append(b.text());
    return Value::String(std::move(text));
  }
  if (op == "+" && a.IsList() && b.IsList() && a.is_tuple() == b.is_tuple()) {
    std::vector<Value> items = a.list();
    items.insert(items.end(), b.list().begin(), b.list().end());
    return Value::MakeList(std::move(items), a.is_tuple());
  }
  if (op == "*" && (a.IsString() || a.IsList()) && b.IsInteger()) return Repeat(a, b.integer());
  if (op == "*" && a.IsInteger() && (b.IsString() || b.IsList())) return Repeat(b, a.integer());
  if (op == "%" && a.IsString()) Fail("formatting strings with % is not supported");
  FailOperands(op, a, b);
}

Value GetAttribute(const Value& object, std::string_view name) {
  if (object.IsUndefined()) Fail("'", object.undefined_name(), "' is undefined");
  if (object.IsDict()) {
    if (IsDictMethod(name)) return Value(Value::Variant(Function{std::string(name)}));
    if (const Value* found = object.dict().Find(name)) return *found;
  }
  if (object.Is<std::shared_ptr<Namespace>>()) {
    if (const Value* found = object.name_space().fields.Find(name)) return *found;
  }
  if (object.Is<std::shared_ptr<Loop>>()) return LoopField(object.loop(), name);
  return Value::MissingAttribute(std::string(name));
}

Value GetItem(const Value& object, const Value& key) {
  if (object.IsUndefined()) Fail("'", object.undefined_name(), "' is undefined");
  if (key.IsString()) {
    if (object.IsDict()) {
      if (const Value* found = object.dict().Find(key.bytes())) return *found;
    }
    return GetAttribute(object, key.bytes());
  }
  if (key.IsInteger() && object.IsList()) {
    const auto at = Position(key.integer(), object.list().size());
    if (at) return object.list()[*at];
  } else if (key.IsInteger() && object.IsString()) {
    const std::vector<size_t> offsets = CodePointOffsets(object.bytes());
    const auto at = Position(key.integer(), offsets.size() - 1);
    if (at) return Value::String(object.text().Substr(offsets[*at], offsets[*at + 1]));
  }
  return Value::MissingAttribute(ToText(key).bytes());
}

Value GetSlice(const Value& object, const Value* begin, const Value* end, const Value* step) {
  if (object.IsUndefined()) Fail("'", object.undefined_name(), "' is undefined");
  if (!object.IsList() && !object.IsString())
    Fail("'", object.TypeName(), "' object cannot be sliced");
  int64_t stride = 1;
  if (step != nullptr && !step->IsNone()) {
    if (!step->IsInteger() || step->integer() == 0)
      Fail("a slice's step must be an integer other than zero");
    stride = step->integer();
  }
  const std::vector<size_t> offsets =
      object.IsString() ? CodePointOffsets(object.bytes()) : std::vector<size_t>();
  const int64_t size = object.IsString() ? offsets.size() - 1 : object.list().size();
  const int64_t from = SliceBound(begin, size, stride, stride > 0 ? 0 : size - 1);
  const int64_t to = SliceBound(end, size, stride, stride > 0 ? size : -1);
  if (object.IsString()) {
    if (stride == 1)
      return Value::String(object.text().Substr(offsets[from], offsets[std::max(from, to)]));
    Text text;
    for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride)
      text.Append(object.text().Substr(offsets[i], offsets[i + 1]));
    return Value::String(std::move(text));
  }
  std::vector<Value> items;
  for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride)
    items.push_back(object.list()[i]);
  return Value::MakeList(std::move(items), object.is_tuple());
}

}  // namespace apb::text::jinja
