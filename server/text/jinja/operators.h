// Python's operators on values: arithmetic, attributes, subscripts, slices.
#pragma once

#include <string_view>

#include "server/text/jinja/value.h"

namespace apb::text::jinja {

// `op` is one of + - * / // % **. Fails (TemplateError) for operands that do not fit.
Value Arithmetic(std::string_view op, const Value& a, const Value& b);
// object.name; Undefined if there is none.
Value GetAttribute(const Value& object, std::string_view name);
// object[key]; Undefined if there is none.
Value GetItem(const Value& object, const Value& key);
// object[begin:end:step]; a part that is left out is null.
Value GetSlice(const Value& object, const Value* begin, const Value* end, const Value* step);

}  // namespace apb::text::jinja
