// Runs a parsed template.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/time/time.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/value.h"

namespace apb::text::jinja {

struct Rendered {
  // What one pass of a loop over the messages printed.
  struct Turn {
    size_t begin, end;
    int message_index;
  };
  Text text;
  std::vector<Turn>
      turns;  // in the order of their begin, those of inner loops behind their outer ones
};

// `variables` are what the template sees. Fails (TemplateError) with the line, except for what the
// template itself raises.
Rendered Render(const Block& block, const Dict& variables, absl::Time now);

}  // namespace apb::text::jinja
