// JSON from outside (files of a checkpoint, bodies of requests): limits on size and nesting before
// it is parsed, then typed access to the fields of an object with the first error kept.
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

// The bytes of a regular file. kNotFound if there is none or it cannot be opened, kInvalidArgument
// if it has more than max_bytes; each names the path.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// kInvalidArgument for anything but one object of valid UTF-8 JSON, nested at most kMaxJsonDepth
// deep. `name` is what the errors call the text.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view name);

// A field that is null counts as absent. Without a fallback a field must be there. A field that is
// wrong gives the fallback (or zero, or empty) and makes status() an InvalidField, unless there was
// an error before.
class JsonReader {
 public:
  // `object` must outlive the reader; that it is no object is an error too. Names in errors begin
  // with `prefix`, e.g. "apb." or "config.json: ".
  explicit JsonReader(const nlohmann::json& object, std::string prefix = "");

  // The field, or null where it is absent.
  const nlohmann::json* Find(const char* name) const;
  bool Has(const char* name) const { return Find(name) != nullptr; }

  bool Boolean(const char* name, std::optional<bool> fallback = std::nullopt);
  // From `low` to `high`. Numbers like 16.0 count: some writers know no others.
  int64_t Integer(const char* name, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt);
  // Any integer of 64 bits; negative ones wrap around.
  uint64_t Bits(const char* name, std::optional<uint64_t> fallback = std::nullopt);
  double Number(const char* name, double low, double high,
                std::optional<double> fallback = std::nullopt);
  std::string String(const char* name, std::optional<std::string> fallback = std::nullopt);
  // A string or a list of strings; empty where absent.
  std::vector<std::string> Strings(const char* name);
  // A list of integers of 32 bits; empty where absent.
  std::vector<int32_t> Integers(const char* name);
  // The same of a value that stands elsewhere; `name` is for errors.
  std::vector<int32_t> IntegersOf(const char* name, const nlohmann::json& value);
  // A list, which must be there; null where it is not.
  const nlohmann::json* Array(const char* name);

  // Also for what the caller finds wrong.
  void Fail(std::string_view name, std::string_view problem);
  const absl::Status& status() const { return status_; }

 private:
  // The field; where it is absent that is an error if it has no fallback.
  const nlohmann::json* Require(const char* name, bool has_fallback);

  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace apb::base
