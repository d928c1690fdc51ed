// Runs a parsed template.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/time/time.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/value.h"

namespace apb::text::jinja {

struct Rendered {
  // The text that one pass of a loop over the messages printed: bytes [begin, end).
  struct Turn {
    size_t begin, end;
    int message_index;
  };
  Text text;
  // In the order of their begins; the turns of inner loops follow those of their outer loops.
  std::vector<Turn> turns;
};

// Renders `block` with these variables. Fails (TemplateError) with the line, except for a message
// that the template raises itself.
Rendered Render(const Block& block, const Dict& variables, absl::Time now);

}  // namespace apb::text::jinja
