// JSON of a request body, with limits, and typed access to its fields.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::http_api {

inline constexpr int kMaxJsonDepth = 64;

// kInvalidArgument for anything but one object of valid UTF-8 JSON that is at most kMaxJsonDepth
// deep.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view body);

// Reads fields of an object and keeps the first error. A field that is absent or null leaves its
// target as it is; one of another type is an error that names it.
class FieldReader {
 public:
  // `object` must outlive the reader. Names in errors begin with `prefix`, e.g. "apb.".
  FieldReader(const nlohmann::json& object, std::string prefix = "");

  // The field, or null when it is absent or null.
  const nlohmann::json* Find(const char* name) const;
  void Read(const char* name, std::optional<double>* target);
  void Read(const char* name, std::optional<int64_t>* target);
  void Read(const char* name, std::optional<uint64_t>* target);
  void Read(const char* name, std::optional<std::string>* target);
  void Read(const char* name, std::string* target);
  void Read(const char* name, bool* target);
  void Read(const char* name, std::optional<bool>* target);
  void Read(const char* name, std::vector<int64_t>* target);
  void Read(const char* name, std::vector<int32_t>* target);
  // A string or a list of strings.
  void ReadStrings(const char* name, std::vector<std::string>* target);
  void Fail(std::string_view name, std::string_view message);

  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace apb::http_api
