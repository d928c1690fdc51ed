// An error that names the wrong field of a request or a file. The APIs' translators also show the
// name by itself (OpenAI's `param`).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/base/string_view.h"

namespace apb::base {

inline constexpr char kFieldPayload[] = "apb/field";

// kInvalidArgument with the message "field: problem", e.g. "temperature: must be a number".
inline absl::Status InvalidField(std::string_view field, std::string_view problem) {
  absl::Status status =
      absl::InvalidArgumentError(absl::StrCat(AbslView(field), ": ", AbslView(problem)));
  status.SetPayload(kFieldPayload, absl::Cord(AbslView(field)));
  return status;
}

// The field that InvalidField named; empty for any other status.
inline std::string FieldOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kFieldPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace apb::base
