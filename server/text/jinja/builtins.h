// The filters, tests, methods and functions that templates may use. They mean what they mean in
// Python and jinja2. A failure is a TemplateError.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/text/jinja/value.h"

namespace apb::text::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or with the name `name`; null if it was left out.
  const Value* Find(size_t index, std::string_view name) const;
  // The same, but fails if it was left out. `what` is the callee's name for the message.
  const Value& Need(size_t index, std::string_view name, std::string_view what) const;
};

bool IsKnownFilter(std::string_view name);
bool IsKnownTest(std::string_view name);
bool IsKnownMethod(std::string_view name);
// A function that jinja2 always has and that is not supported here.
bool IsUnsupportedGlobal(std::string_view name);
// Whether getattr(dict, name) is a method in Python.
bool IsDictMethod(std::string_view name);

Value ApplyFilter(std::string_view name, const Value& input, const Arguments& arguments);
bool ApplyTest(std::string_view name, const Value& input, const Arguments& arguments);
Value CallMethod(std::string_view name, const Value& object, const Arguments& arguments);

// The global functions: range, namespace, dict, strftime_now, raise_exception. `now` is the clock's
// time.
bool IsGlobalFunction(std::string_view name);
Value CallGlobal(std::string_view name, const Arguments& arguments, absl::Time now);

}  // namespace apb::text::jinja
