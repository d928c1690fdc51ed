#include "engine/base/json_reader.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/string_view.h"

namespace apb::base {
namespace {

using nlohmann::json;

// Checked before parsing, because the parser builds the whole tree, and freeing it recurses.
bool NestsTooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
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

std::string Range(const absl::AlphaNum& low, const absl::AlphaNum& high, const json& value) {
  return absl::StrCat("must be in [", low, ", ", high, "], got ", value.dump());
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  std::ifstream file(path, std::ios::binary);
  const auto size = std::filesystem::file_size(path, error);
  if (error || !file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  if (size > max_bytes)
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", size, " bytes, the limit is ", max_bytes));
  std::string contents(size, '\0');
  file.read(contents.data(), static_cast<std::streamsize>(size));
  if (file.gcount() != static_cast<std::streamsize>(size))
    return absl::DataLossError(
        absl::StrCat(path, ": read ", file.gcount(), " of ", size, " bytes"));
  return contents;
}

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view name) {
  const absl::string_view where = AbslView(name);
  if (NestsTooDeep(text))
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": JSON is nested deeper than ", kMaxJsonDepth, " levels"));
  try {
    json parsed = json::parse(text.begin(), text.end());
    if (!parsed.is_object())
      return absl::InvalidArgumentError(absl::StrCat(where, ": must be a JSON object"));
    return parsed;
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": is no valid JSON: error at byte ", error.byte));
  } catch (const json::exception&) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": is no valid JSON: a number is out of range"));
  }
}

JsonReader::JsonReader(const json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {
  if (object_.is_object()) return;
  const std::string name = prefix_.substr(0, prefix_.find_last_not_of(".: ") + 1);
  status_ = InvalidField(name, "must be an object");
}

void JsonReader::Fail(std::string_view name, std::string_view problem) {
  if (status_.ok()) status_ = InvalidField(absl::StrCat(prefix_, AbslView(name)), problem);
}

const json* JsonReader::Find(const char* name) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json* JsonReader::Require(const char* name, bool has_fallback) {
  const json* value = Find(name);
  if (value == nullptr && !has_fallback) Fail(name, "is missing");
  return value;
}

bool JsonReader::Boolean(const char* name, std::optional<bool> fallback) {
  const json* value = Require(name, fallback.has_value());
  if (value != nullptr && value->is_boolean()) return value->get<bool>();
  if (value != nullptr) Fail(name, "must be true or false");
  return fallback.value_or(false);
}

int64_t JsonReader::Integer(const char* name, int64_t low, int64_t high,
                            std::optional<int64_t> fallback) {
  const json* value = Require(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or(low);
  const std::optional<int64_t> number = ToInteger(*value);
  if (number.has_value() && *number >= low && *number <= high) return *number;
  const bool too_big = number.has_value() || value->is_number_unsigned();
  Fail(name, too_big ? Range(low, high, *value) : "must be an integer");
  return fallback.value_or(low);
}

uint64_t JsonReader::Bits(const char* name, std::optional<uint64_t> fallback) {
  const json* value = Require(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or(0);
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  if (const auto number = ToInteger(*value)) return static_cast<uint64_t>(*number);
  Fail(name, "must be an integer");
  return fallback.value_or(0);
}

double JsonReader::Number(const char* name, double low, double high,
                          std::optional<double> fallback) {
  const json* value = Require(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or(low);
  if (!value->is_number()) {
    Fail(name, "must be a number");
  } else if (const double number = value->get<double>(); number >= low && number <= high) {
    return number;
  } else {
    Fail(name, Range(low, high, *value));
  }
  return fallback.value_or(low);
}

std::string JsonReader::String(const char* name, std::optional<std::string> fallback) {
  const json* value = Require(name, fallback.has_value());
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  if (value != nullptr) Fail(name, "must be a string");
  return std::move(fallback).value_or("");
}

std::vector<std::string> JsonReader::Strings(const char* name) {
  const json* value = Find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  std::vector<std::string> strings;
  bool fine = value->is_array();
  for (auto it = value->begin(); fine && it != value->end(); ++it) {
    fine = it->is_string();
    if (fine) strings.push_back(it->get<std::string>());
  }
  if (fine) return strings;
  Fail(name, "must be a string or a list of strings");
  return {};
}

std::vector<int32_t> JsonReader::Integers(const char* name) {
  const json* value = Find(name);
  return value == nullptr ? std::vector<int32_t>() : IntegersOf(name, *value);
}

std::vector<int32_t> JsonReader::IntegersOf(const char* name, const json& value) {
  std::vector<int32_t> numbers;
  if (!value.is_array()) {
    Fail(name, "must be a list of integers");
    return numbers;
  }
  constexpr int64_t kLow = std::numeric_limits<int32_t>::min();
  constexpr int64_t kHigh = std::numeric_limits<int32_t>::max();
  numbers.reserve(value.size());
  for (const json& element : value) {
    const std::optional<int64_t> number = ToInteger(element);
    if (!number.has_value()) {
      Fail(name, "must be a list of integers");
      return {};
    }
    if (*number < kLow || *number > kHigh) {
      Fail(name, Range(kLow, kHigh, element));
      return {};
    }
    numbers.push_back(static_cast<int32_t>(*number));
  }
  return numbers;
}

const json* JsonReader::Array(const char* name) {
  const json* value = Require(name, false);
  if (value == nullptr || value->is_array()) return value;
  Fail(name, "must be a list");
  return nullptr;
}

}  // namespace apb::base
