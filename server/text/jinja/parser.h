// Template source to a tree. Whatever we cannot render is found here, not when a request comes.
#pragma once

#include <string_view>

#include "server/text/jinja/ast.h"

namespace apb::text::jinja {

// Fails (TemplateError) with the line.
Block Parse(std::string_view source);

}  // namespace apb::text::jinja
