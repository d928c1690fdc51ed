// What the components of tokenizer.json (normalizer, pre-tokenizer, decoder, ...) have in common.
#pragma once

#include <string>

#include "engine/base/json_reader.h"

namespace apb::text {

// A component nested deeper than this is refused.
inline constexpr int kMaxComponentDepth = 8;

// A {"String": "x"} or {"Regex": "x"} pattern.
struct Pattern {
  bool is_regex = false;
  std::string text;
};

// The "pattern" of a component; what is wrong with it is the reader's error.
Pattern ReadPattern(base::JsonReader& component);

}  // namespace apb::text
