// Typed access to JSON objects with messages that name the path.
#include "server/text/json_fields.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::text {
namespace {

absl::Status Wrong(const std::string& where, const char* name, const char* expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": field \"", name, "\" must be ", expected));
}

// Null when the field is absent or null.
absl::StatusOr<const nlohmann::json*> Find(const nlohmann::json& object, const char* name,
                                           const std::string& where) {
  if (!object.is_object())
    return absl::InvalidArgumentError(absl::StrCat(where, ": must be an object"));
  auto it = object.find(name);
  if (it == object.end() || it->is_null()) return nullptr;
  return &*it;
}

}  // namespace

absl::StatusOr<std::string> StringField(const nlohmann::json& object, const char* name,
                                        const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, name, where));
  if (field == nullptr || !field->is_string()) return Wrong(where, name, "a string");
  return field->get<std::string>();
}

absl::StatusOr<std::string> OptionalString(const nlohmann::json& object, const char* name,
                                           std::string fallback, const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, name, where));
  if (field == nullptr) return fallback;
  if (!field->is_string()) return Wrong(where, name, "a string");
  return field->get<std::string>();
}

absl::StatusOr<bool> OptionalBool(const nlohmann::json& object, const char* name, bool fallback,
                                  const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, name, where));
  if (field == nullptr) return fallback;
  if (!field->is_boolean()) return Wrong(where, name, "true or false");
  return field->get<bool>();
}

absl::StatusOr<int64_t> OptionalInt(const nlohmann::json& object, const char* name,
                                    int64_t fallback, const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, name, where));
  if (field == nullptr) return fallback;
  if (!field->is_number_integer()) return Wrong(where, name, "an integer");
  if (field->is_number_unsigned() && field->get<uint64_t>() > INT64_MAX)
    return Wrong(where, name, "smaller");
  return field->get<int64_t>();
}

absl::StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& object, const char* name,
                                                 const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, name, where));
  if (field == nullptr || !field->is_array()) return Wrong(where, name, "an array");
  return field;
}

absl::StatusOr<std::string> ComponentType(const nlohmann::json& component,
                                          const std::string& where) {
  return StringField(component, "type", where);
}

absl::StatusOr<Pattern> PatternField(const nlohmann::json& object, const std::string& where) {
  APB_ASSIGN_OR_RETURN(const nlohmann::json* field, Find(object, "pattern", where));
  if (field == nullptr || !field->is_object() || field->size() != 1)
    return Wrong(where, "pattern", "an object with one of String, Regex");
  const bool is_regex = field->contains("Regex");
  if (!is_regex && !field->contains("String"))
    return Wrong(where, "pattern", "an object with one of String, Regex");
  APB_ASSIGN_OR_RETURN(std::string text,
                       StringField(*field, is_regex ? "Regex" : "String", where + ".pattern"));
  if (text.empty()) return Wrong(where, "pattern", "not empty");
  return Pattern{is_regex, std::move(text)};
}

}  // namespace apb::text
