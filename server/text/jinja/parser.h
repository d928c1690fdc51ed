// Parses a template's source into a tree. Everything that cannot be rendered is found here, before
// any request comes.
#pragma once

#include <string_view>

#include "server/text/jinja/ast.h"

namespace apb::text::jinja {

// Fails (TemplateError) with the line.
Block Parse(std::string_view source);

}  // namespace apb::text::jinja
