// Parsing and reading JSON.
#include "server/http/json_body.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

using nlohmann::json;

// Before parsing: the parser builds what it reads, and freeing it recurses.
bool IsTooDeep(std::string_view body) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// Numbers like 16.0 count as integers: some clients know no others.
std::optional<int64_t> ToInteger(const json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  if (std::trunc(number) != number || std::abs(number) > 9e15) return std::nullopt;
  return static_cast<int64_t>(number);
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view body) {
  if (IsTooDeep(body)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body's JSON is nested deeper than ", kMaxJsonDepth, " levels"));
  }
  try {
    json parsed = json::parse(body.begin(), body.end());
    if (!parsed.is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
    return parsed;
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body is no valid JSON: error at byte ", error.byte));
  } catch (const json::exception&) {
    return absl::InvalidArgumentError("the body is no valid JSON: a number is out of range");
  }
}

FieldReader::FieldReader(const json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

void FieldReader::Fail(std::string_view name, std::string_view message) {
  if (status_.ok())
    status_ = request::InvalidField(absl::StrCat(prefix_, base::AbslView(name)), message);
}

const json* FieldReader::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void FieldReader::Read(const char* name, std::optional<double>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_number()) return Fail(name, "must be a number");
  *target = value->get<double>();
}

void FieldReader::Read(const char* name, std::optional<int64_t>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  *target = ToInteger(*value);
  if (!target->has_value()) Fail(name, "must be an integer");
}

void FieldReader::Read(const char* name, std::optional<uint64_t>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (value->is_number_unsigned()) {
    *target = value->get<uint64_t>();
  } else if (const auto number = ToInteger(*value)) {
    *target = static_cast<uint64_t>(*number);
  } else {
    Fail(name, "must be an integer");
  }
}

void FieldReader::Read(const char* name, std::optional<std::string>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(name, "must be a string");
  *target = value->get<std::string>();
}

void FieldReader::Read(const char* name, std::string* target) {
  std::optional<std::string> text;
  Read(name, &text);
  if (text.has_value()) *target = *std::move(text);
}

void FieldReader::Read(const char* name, bool* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, "must be true or false");
  *target = value->get<bool>();
}

void FieldReader::Read(const char* name, std::optional<bool>* target) {
  if (Find(name) != nullptr) Read(name, &target->emplace());
}

void FieldReader::Read(const char* name, std::vector<int64_t>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_array()) return Fail(name, "must be a list of integers");
  target->reserve(value->size());
  for (const json& element : *value) {
    const auto number = ToInteger(element);
    if (!number.has_value()) return Fail(name, "must be a list of integers");
    target->push_back(*number);
  }
}

void FieldReader::Read(const char* name, std::vector<int32_t>* target) {
  std::vector<int64_t> numbers;
  Read(name, &numbers);
  target->reserve(numbers.size());
  for (int64_t number : numbers) {
    if (number < 0 || number > std::numeric_limits<int32_t>::max()) {
      return Fail(name, absl::StrCat(number, " is no token id"));
    }
    target->push_back(static_cast<int32_t>(number));
  }
}

void FieldReader::ReadStrings(const char* name, std::vector<std::string>* target) {
  const json* value = Find(name);
  if (value == nullptr) return;
  if (value->is_string()) {
    target->push_back(value->get<std::string>());
    return;
  }
  if (!value->is_array()) return Fail(name, "must be a string or a list of strings");
  for (const json& element : *value) {
    if (!element.is_string()) return Fail(name, "must be a string or a list of strings");
    target->push_back(element.get<std::string>());
  }
}

}  // namespace apb::http_api
