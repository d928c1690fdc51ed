// Reads fields of tokenizer.json with an error that names the field instead of an exception.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::text {

// `where` is the path of `object` in the file, for messages. A field that is absent or null gives
// the fallback of the Optional functions and is an error for the others.
absl::StatusOr<std::string> StringField(const nlohmann::json& object, const char* name,
                                        const std::string& where);
absl::StatusOr<std::string> OptionalString(const nlohmann::json& object, const char* name,
                                           std::string fallback, const std::string& where);
absl::StatusOr<bool> OptionalBool(const nlohmann::json& object, const char* name, bool fallback,
                                  const std::string& where);
absl::StatusOr<int64_t> OptionalInt(const nlohmann::json& object, const char* name,
                                    int64_t fallback, const std::string& where);
absl::StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& object, const char* name,
                                                 const std::string& where);
// The "type" of a component: an object of a Hugging Face tokenizer.
absl::StatusOr<std::string> ComponentType(const nlohmann::json& component,
                                          const std::string& where);
// A {"String": "x"} or {"Regex": "x"} pattern.
struct Pattern {
  bool is_regex = false;
  std::string text;
};
absl::StatusOr<Pattern> PatternField(const nlohmann::json& object, const std::string& where);

// A component nested deeper than this is refused.
inline constexpr int kMaxComponentDepth = 8;

}  // namespace apb::text
