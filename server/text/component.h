// Shared by the components of tokenizer.json (normalizer, pre-tokenizer, decoder, ...).
#pragma once

#include <string>

#include "engine/base/json_reader.h"

namespace apb::text {

// Loading refuses a component that is nested deeper than this.
inline constexpr int kMaxComponentDepth = 8;

// A pattern in the form {"String": "x"} or {"Regex": "x"}.
struct Pattern {
  bool is_regex = false;
  std::string text;
};

// Reads the "pattern" of a component; an error becomes the reader's.
Pattern ReadPattern(base::JsonReader& component);

}  // namespace apb::text
