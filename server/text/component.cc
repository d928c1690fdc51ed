// Reads the parts that components share.
#include "server/text/component.h"

namespace apb::text {

Pattern ReadPattern(base::JsonReader& component) {
  Pattern pattern;
  const nlohmann::json* field = component.Find("pattern");
  if (field != nullptr && field->is_object() && field->size() == 1) {
    pattern.is_regex = field->contains("Regex");
    base::JsonReader reader(*field);
    pattern.text = reader.String(pattern.is_regex ? "Regex" : "String");
  }
  if (pattern.text.empty())
    component.Fail("pattern", "must be an object with one text that is not empty, String or Regex");
  return pattern;
}

}  // namespace apb::text
