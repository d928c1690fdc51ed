// Python's rules of truth, equality, order and iteration.
#include "server/text/jinja/value.h"

#include <algorithm>
#include <utility>

#include "server/text/jinja/error.h"
#include "server/text/utf8.h"

namespace apb::text::jinja {
namespace {

constexpr size_t kIndexedSize = 12;  // smaller dictionaries are searched from the front

// The depth of a container to which `item` is added. Namespaces and loops can change, so only
// variables may hold them.
int DepthWith(int depth, const Value& item) {
  if (item.Is<std::shared_ptr<Namespace>>() || item.Is<std::shared_ptr<Loop>>())
    FailUnsupported("a ", item.TypeName(), " within another value");
  depth = std::max(depth, item.depth() + 1);
  if (depth > kMaxValueDepth) Fail("values are nested deeper than ", kMaxValueDepth);
  return depth;
}

int DepthOf(const std::vector<Value>& items) {
  int depth = 1;
  for (const Value& item : items) depth = DepthWith(depth, item);
  return depth;
}

}  // namespace

const Value* Dict::Find(std::string_view key) const {
  if (items_.size() >= kIndexedSize) {
    auto it = index_.find(key);
    return it == index_.end() ? nullptr : &items_[it->second].second;
  }
  for (const auto& [name, value] : items_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Dict::Set(const std::string& key, Value value) {
  depth_ = DepthWith(depth_, value);
  auto [it, is_new] = index_.try_emplace(key, items_.size());
  if (is_new) {
    items_.emplace_back(key, std::move(value));
  } else {
    items_[it->second].second = std::move(value);
  }
}

Value Dict::Key(size_t index) const { return Value::String(Text(items_[index].first, origin)); }

Value Value::MakeList(std::vector<Value> items, bool is_tuple) {
  const int depth = DepthOf(items);
  return Value(Variant(std::make_shared<List>(List{std::move(items), depth, is_tuple})));
}

Value Value::MakeGenerator(std::vector<Value> items) {
  const int depth = DepthOf(items);
  return Value(Variant(std::make_shared<Generator>(Generator{std::move(items), depth})));
}

int Value::depth() const {
  if (IsList()) return std::get<std::shared_ptr<List>>(variant_)->depth;
  if (IsDict()) return dict().depth();
  return IsGenerator() ? generator().depth : 0;
}

bool Value::Truth() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsInteger()) return integer() != 0;
  if (Is<double>()) return number() != 0;
  if (IsString()) return !bytes().empty();
  if (IsList()) return !list().empty();
  if (IsDict()) return !dict().items().empty();
  return true;
}

const char* Value::TypeName() const {
  if (IsNone()) return "NoneType";
  if (Is<bool>()) return "bool";
  if (Is<int64_t>()) return "int";
  if (Is<double>()) return "float";
  if (IsString()) return "str";
  if (IsList()) return is_tuple() ? "tuple" : "list";
  if (IsDict()) return "dict";
  if (Is<std::shared_ptr<Namespace>>()) return "Namespace";
  if (Is<std::shared_ptr<Loop>>()) return "LoopContext";
  if (IsGenerator()) return "generator";
  if (Is<Function>()) return "function";
  return "Undefined";
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
  if (a.IsNumber() && b.IsNumber()) return a.number() == b.number();
  if (a.IsString() && b.IsString()) return a.bytes() == b.bytes();
  if (a.IsUndefined() && b.IsUndefined()) return true;
  if (a.IsNone() && b.IsNone()) return true;
  if (a.IsList() && b.IsList())
    return a.is_tuple() == b.is_tuple() && a.list().size() == b.list().size() &&
           std::equal(a.list().begin(), a.list().end(), b.list().begin(), Equal);
  if (a.IsDict() && b.IsDict()) {
    if (a.dict().items().size() != b.dict().items().size()) return false;
    return std::all_of(a.dict().items().begin(), a.dict().items().end(), [&](const auto& item) {
      const Value* other = b.dict().Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  if (a.Is<Function>() && b.Is<Function>())
    return a.function().name == b.function().name && a.function().macro == b.function().macro;
  return false;
}

bool Less(const Value& a, const Value& b) {
  if (a.IsInteger() && b.IsInteger()) return a.integer() < b.integer();
  if (a.IsNumber() && b.IsNumber()) return a.number() < b.number();
  if (a.IsString() && b.IsString())
    // UTF-8 keeps the order of code points.
    return a.bytes() < b.bytes();
  if (a.IsList() && b.IsList())
    return std::lexicographical_compare(a.list().begin(), a.list().end(), b.list().begin(),
                                        b.list().end(), Less);
  if (a.IsUndefined()) Fail("'", a.undefined_name(), "' is undefined");
  if (b.IsUndefined()) Fail("'", b.undefined_name(), "' is undefined");
  Fail("'<' not supported between instances of '", a.TypeName(), "' and '", b.TypeName(), "'");
}

void NeedHashable(const Value& value) {
  if (value.IsDict() || (value.IsList() && !value.is_tuple()))
    Fail("unhashable type: '", value.TypeName(), "'");
}

bool Contains(const Value& container, const Value& item) {
  if (container.IsString()) {
    if (!item.IsString())
      Fail("'in <string>' requires string as left operand, not ", item.TypeName());
    return container.bytes().find(item.bytes()) != std::string::npos;
  }
  if (container.IsDict()) {
    NeedHashable(item);
    return item.IsString() && container.dict().Find(item.bytes()) != nullptr;
  }
  if (container.IsUndefined()) return false;
  if (!container.IsList() && !container.IsGenerator())
    Fail("argument of type '", container.TypeName(), "' is not iterable");
  const std::vector<Value> items = Iterate(container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& other) { return Equal(other, item); });
}

std::vector<Value> Iterate(const Value& value) {
  if (value.IsList()) return value.list();
  if (value.IsGenerator()) return std::exchange(value.generator().items, {});
  std::vector<Value> items;
  if (value.IsDict()) {
    for (size_t i = 0; i < value.dict().items().size(); ++i) items.push_back(value.dict().Key(i));
    return items;
  }
  if (value.IsString()) {
    for (size_t pos = 0; pos < value.bytes().size();) {
      const size_t begin = pos;
      NextCodePoint(value.bytes(), pos);
      items.push_back(Value::String(
          Text(value.bytes().substr(begin, pos - begin), value.text().FirstOrigin())));
    }
    return items;
  }
  if (value.IsUndefined()) return items;
  Fail("'", value.TypeName(), "' object is not iterable");
}

std::optional<Origin> OriginOf(const Value& value) {
  if (value.IsString()) return value.text().FirstOrigin();
  if (value.IsList()) {
    for (const Value& item : value.list()) {
      if (auto origin = OriginOf(item)) return origin;
    }
  }
  if (value.IsDict()) {
    if (value.dict().origin) return value.dict().origin;
    for (const auto& item : value.dict().items()) {
      if (auto origin = OriginOf(item.second)) return origin;
    }
  }
  return std::nullopt;
}

Value FromJson(const nlohmann::ordered_json& json, const Origin& origin, int depth) {
  if (depth > kMaxJsonDepth) Fail("JSON is nested deeper than ", kMaxJsonDepth);
  switch (json.type()) {
    case nlohmann::json::value_t::boolean:
      return Value::Bool(json.get<bool>());
    case nlohmann::json::value_t::number_integer:
      return Value::Int(json.get<int64_t>());
    case nlohmann::json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
        return Value::Float(json.get<double>());
      return Value::Int(json.get<int64_t>());
    case nlohmann::json::value_t::number_float:
      return Value::Float(json.get<double>());
    case nlohmann::json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (FindInvalidUtf8(text) != std::string::npos) Fail("a string is not valid UTF-8");
      return Value::String(Text(text, origin));
    }
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(FromJson(item, origin, depth + 1));
      return Value::MakeList(std::move(items));
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      dict.origin = origin;
      for (const auto& [key, item] : json.items()) dict.Set(key, FromJson(item, origin, depth + 1));
      return Value::MakeDict(std::move(dict));
    }
    default:
      return Value::MakeNone();
  }
}

}  // namespace apb::text::jinja
