// The values with which templates compute: Python's, as far as templates see them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nlohmann/json.hpp"
#include "server/text/jinja/text.h"
#include "server/text/string_map.h"

namespace apb::text::jinja {

class Value;
struct Statement;

// Deeper values are refused, because values are walked and destroyed recursively.
inline constexpr int kMaxValueDepth = 250;

struct Undefined {
  std::string name;  // for messages
};
struct None {};
struct List {
  std::vector<Value> items;
  int depth = 1;  // nesting of lists and dictionaries
  bool is_tuple = false;
};
// A generator as a template sees it: true even when empty, without a length, and empty after the
// first loop over it.
struct Generator {
  std::vector<Value> items;
  int depth = 1;
};
// A dictionary in the order of insertion. Keys are strings.
class Dict {
 public:
  Dict() = default;
  const Value* Find(std::string_view key) const;
  void Set(const std::string& key, Value value);
  const std::vector<std::pair<std::string, Value>>& items() const { return items_; }
  Value Key(size_t index) const;

  // The origin of the dictionary and its keys; nullopt if the template made it.
  std::optional<Origin> origin;
  // The index of the message that this dictionary is; -1: no message.
  int message_index = -1;
  int depth() const { return depth_; }

 private:
  std::vector<std::pair<std::string, Value>> items_;
  StringMap<size_t> index_;
  int depth_ = 1;
};
struct Namespace {
  Dict fields;
};
// A macro of the template, or a built-in function.
struct Function {
  std::string name;
  const Statement* macro = nullptr;
};
// The value of the variable `loop`.
struct Loop {
  std::shared_ptr<List> list;
  size_t index = 0;
  int depth = 1;
};

class Value {
 public:
  using TextPointer = std::shared_ptr<const Text>;
  // Lists and dictionaries are shared, as in Python. Templates cannot change them.
  using Variant =
      std::variant<Undefined, None, bool, int64_t, double, TextPointer, std::shared_ptr<List>,
                   std::shared_ptr<Dict>, std::shared_ptr<Namespace>, std::shared_ptr<Generator>,
                   Function, std::shared_ptr<Loop>>;

  Value() : variant_(Undefined{}) {}
  Value(Variant variant) : variant_(std::move(variant)) {}  // NOLINT: values convert
  static Value MakeNone() { return Value(Variant(None{})); }
  static Value Bool(bool b) { return Value(Variant(b)); }
  static Value Int(int64_t i) { return Value(Variant(i)); }
  static Value Float(double d) { return Value(Variant(d)); }
  static Value String(Text text) {
    return Value(Variant(std::make_shared<const Text>(std::move(text))));
  }
  static Value String(std::string bytes) { return String(Text(std::move(bytes))); }
  static Value MakeList(std::vector<Value> items, bool is_tuple = false);
  static Value MakeGenerator(std::vector<Value> items);
  static Value MakeDict(Dict dict) {
    return Value(Variant(std::make_shared<Dict>(std::move(dict))));
  }
  static Value MissingAttribute(const std::string& name) { return Value(Variant(Undefined{name})); }

  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(variant_);
  }
  bool IsUndefined() const { return Is<Undefined>(); }
  bool IsNone() const { return Is<None>(); }
  bool IsString() const { return Is<TextPointer>(); }
  bool IsList() const { return Is<std::shared_ptr<List>>(); }
  bool IsGenerator() const { return Is<std::shared_ptr<Generator>>(); }
  bool IsDict() const { return Is<std::shared_ptr<Dict>>(); }
  // Python's numbers: bool is one of them.
  bool IsInteger() const { return Is<int64_t>() || Is<bool>(); }
  bool IsNumber() const { return IsInteger() || Is<double>(); }

  // The value must have the right type for these.
  const Text& text() const { return *std::get<TextPointer>(variant_); }
  const std::string& bytes() const { return text().bytes(); }
  const std::vector<Value>& list() const {
    return std::get<std::shared_ptr<List>>(variant_)->items;
  }
  bool is_tuple() const { return std::get<std::shared_ptr<List>>(variant_)->is_tuple; }
  Generator& generator() const { return *std::get<std::shared_ptr<Generator>>(variant_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<Dict>>(variant_); }
  Namespace& name_space() const { return *std::get<std::shared_ptr<Namespace>>(variant_); }
  const Function& function() const { return std::get<Function>(variant_); }
  const Loop& loop() const { return *std::get<std::shared_ptr<Loop>>(variant_); }
  const std::string& undefined_name() const { return std::get<Undefined>(variant_).name; }
  int64_t integer() const {
    return Is<bool>() ? std::get<bool>(variant_) : std::get<int64_t>(variant_);
  }
  double number() const {
    return Is<double>() ? std::get<double>(variant_) : static_cast<double>(integer());
  }

  int depth() const;  // 0: it holds no other values
  bool Truth() const;
  // Python's name of the type, for messages.
  const char* TypeName() const;

 private:
  Variant variant_;
};

bool Equal(const Value& a, const Value& b);
// a < b. Fails (TemplateError) for values that have no order.
bool Less(const Value& a, const Value& b);
// Fails for values that cannot be keys of a dictionary or members of a set.
void NeedHashable(const Value& value);
// Python's `item in container`.
bool Contains(const Value& container, const Value& item);
// The items that a loop over the value visits. Fails for a value that cannot be iterated. A
// generator is empty afterwards.
std::vector<Value> Iterate(const Value& value);
// The origin of the value, or of the first value with an origin within it.
std::optional<Origin> OriginOf(const Value& value);

// Turns JSON into values. Every string gets `origin`. Fails if it is nested deeper than
// kMaxJsonDepth.
inline constexpr int kMaxJsonDepth = 100;
Value FromJson(const nlohmann::ordered_json& json, const Origin& origin, int depth = 0);

}  // namespace apb::text::jinja
