// The one table between absl::Status, gRPC and HTTP, and the details that travel in a status: the
// field that is wrong, OpenAI's error code, the seconds to wait before trying again.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/base/field_error.h"

namespace apb::request {

// kInvalidArgument that names the field, e.g. "temperature".
using base::FieldOf;
using base::InvalidField;

struct HttpError {
  int status = 500;
  std::string_view type;  // OpenAI's error.type
};

HttpError HttpErrorOf(absl::StatusCode code);
// "INVALID_ARGUMENT": the name that gRPC uses; its numbers are those of absl.
std::string_view CodeName(absl::StatusCode code);

absl::Status WithErrorCode(absl::Status status, std::string_view code);
absl::Status WithRetryAfter(absl::Status status, int seconds);

// Why a request was turned away, as metrics have it.
std::string_view RejectionReason(const absl::Status& status);

// Empty, or 0, when the status does not tell.
std::string ErrorCodeOf(const absl::Status& status);
int RetryAfterOf(const absl::Status& status);

}  // namespace apb::request
