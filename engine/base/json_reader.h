// Reads JSON from outside (files of a checkpoint, bodies of requests): checks size and nesting
// before parsing, then gives typed access to the fields of an object and keeps the first error.
//
//   APB_ASSIGN_OR_RETURN(const nlohmann::json root, ParseJsonObject(text, "config.json"));
//   JsonReader reader(root, "config.json: ");
//   const int64_t layers = reader.Integer("num_hidden_layers", 1, 1000);    // must be there
//   const bool tied = reader.Boolean("tie_word_embeddings", false);         // false where absent
//   APB_RETURN_IF_ERROR(reader.status());
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::base {

inline constexpr int kMaxJsonDepth = 64;

// The bytes of a regular file. kNotFound if it does not exist or cannot be opened, kInvalidArgument
// if it has more than max_bytes, kDataLoss if it gets shorter while it is read. Errors name the
// path.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// Parses one JSON object. kInvalidArgument if the text is not valid UTF-8 JSON, not an object, or
// nested deeper than kMaxJsonDepth. Errors call the text `name`.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view name);

// Typed access to the fields of an object. A null field counts as absent. A field without a
// fallback is required. A missing or wrong field gives the fallback (else the lower bound, zero, or
// empty) and makes status() an InvalidField, unless an earlier error is there.
class JsonReader {
 public:
  // `object` must outlive the reader; if it is not an object, status() is an error. Field names in
  // errors begin with `prefix`, e.g. "apb." or "config.json: ".
  explicit JsonReader(const nlohmann::json& object, std::string prefix = "");

  // The field, or null if it is absent.
  const nlohmann::json* Find(const char* name) const;
  bool Has(const char* name) const { return Find(name) != nullptr; }

  bool Boolean(const char* name, std::optional<bool> fallback = std::nullopt);
  // An integer in [low, high]. Numbers like 16.0 count as integers, because some writers know only
  // floats.
  int64_t Integer(const char* name, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt);
  // Any 64-bit integer; negative ones wrap around.
  uint64_t Bits(const char* name, std::optional<uint64_t> fallback = std::nullopt);
  double Number(const char* name, double low, double high,
                std::optional<double> fallback = std::nullopt);
  std::string String(const char* name, std::optional<std::string> fallback = std::nullopt);
  // A string or a list of strings; empty if absent.
  std::vector<std::string> Strings(const char* name);
  // A list of 32-bit integers; empty if absent.
  std::vector<int32_t> Integers(const char* name);
  // The same for a value found elsewhere; errors call it `name`.
  std::vector<int32_t> IntegersOf(const char* name, const nlohmann::json& value);
  // A required list; null if it is missing or wrong.
  const nlohmann::json* Array(const char* name);

  // Records an error that the caller has found, unless an earlier error is there.
  void Fail(std::string_view name, std::string_view problem);
  const absl::Status& status() const { return status_; }

 private:
  // The field, or null if it is absent, which is an error without a fallback.
  const nlohmann::json* Require(const char* name, bool has_fallback);

  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace apb::base
