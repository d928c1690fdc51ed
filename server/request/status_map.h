// The one table between absl::Status, gRPC and HTTP, and the details that a status carries: the
// wrong field, OpenAI's error code, and the seconds to wait before trying again.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/base/field_error.h"

namespace apb::request {

// InvalidField makes a kInvalidArgument that names the field, e.g. "temperature"; FieldOf reads the
// name.
using base::FieldOf;
using base::InvalidField;

struct HttpError {
  int status = 500;
  std::string_view type;  // OpenAI's error.type
};

HttpError HttpErrorOf(absl::StatusCode code);
// gRPC's name of a code, e.g. "INVALID_ARGUMENT". gRPC and absl number the codes alike.
std::string_view CodeName(absl::StatusCode code);

absl::Status WithErrorCode(absl::Status status, std::string_view code);
absl::Status WithRetryAfter(absl::Status status, int seconds);

// The `reason` label of the metrics for a refused request.
std::string_view RejectionReason(const absl::Status& status);

// Empty, or 0, if the status does not carry it.
std::string ErrorCodeOf(const absl::Status& status);
int RetryAfterOf(const absl::Status& status);

}  // namespace apb::request
