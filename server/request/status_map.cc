// The status table and the payloads of a status.
#include "server/request/status_map.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/string_view.h"

namespace apb::request {
namespace {

constexpr char kErrorCode[] = "apb/error_code";
constexpr char kRetryAfter[] = "apb/retry_after";

struct Row {
  absl::StatusCode code;
  std::string_view name;
  int http;
  std::string_view type;
};

constexpr Row kTable[] = {
    {absl::StatusCode::kOk, "OK", 200, ""},
    {absl::StatusCode::kCancelled, "CANCELLED", 499, "request_cancelled"},
    {absl::StatusCode::kUnknown, "UNKNOWN", 500, "server_error"},
    {absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT", 400, "invalid_request_error"},
    {absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED", 504, "timeout_error"},
    {absl::StatusCode::kNotFound, "NOT_FOUND", 404, "invalid_request_error"},
    {absl::StatusCode::kAlreadyExists, "ALREADY_EXISTS", 409, "invalid_request_error"},
    {absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED", 403, "permission_error"},
    {absl::StatusCode::kUnauthenticated, "UNAUTHENTICATED", 401, "authentication_error"},
    {absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED", 429, "rate_limit_exceeded"},
    {absl::StatusCode::kFailedPrecondition, "FAILED_PRECONDITION", 400, "invalid_request_error"},
    {absl::StatusCode::kAborted, "ABORTED", 503, "service_unavailable"},
    {absl::StatusCode::kOutOfRange, "OUT_OF_RANGE", 400, "invalid_request_error"},
    {absl::StatusCode::kUnimplemented, "UNIMPLEMENTED", 501, "not_supported_error"},
    {absl::StatusCode::kInternal, "INTERNAL", 500, "server_error"},
    {absl::StatusCode::kUnavailable, "UNAVAILABLE", 503, "service_unavailable"},
    {absl::StatusCode::kDataLoss, "DATA_LOSS", 500, "server_error"},
};

const Row& RowOf(absl::StatusCode code) {
  for (const Row& row : kTable) {
    if (row.code == code) return row;
  }
  return kTable[2];
}

std::string Payload(const absl::Status& status, std::string_view key) {
  const auto payload = status.GetPayload(base::AbslView(key));
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace

HttpError HttpErrorOf(absl::StatusCode code) {
  const Row& row = RowOf(code);
  return {row.http, row.type};
}

std::string_view CodeName(absl::StatusCode code) { return RowOf(code).name; }

absl::Status WithErrorCode(absl::Status status, std::string_view code) {
  status.SetPayload(kErrorCode, absl::Cord(base::AbslView(code)));
  return status;
}

absl::Status WithRetryAfter(absl::Status status, int seconds) {
  status.SetPayload(kRetryAfter, absl::Cord(absl::StrCat(seconds)));
  return status;
}

std::string_view RejectionReason(const absl::Status& status) {
  if (ErrorCodeOf(status) == "context_length_exceeded") return "too_long";
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return "queue_full";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    default:
      return "invalid";
  }
}

std::string ErrorCodeOf(const absl::Status& status) { return Payload(status, kErrorCode); }

int RetryAfterOf(const absl::Status& status) {
  int seconds = 0;
  return absl::SimpleAtoi(Payload(status, kRetryAfter), &seconds) ? seconds : 0;
}

}  // namespace apb::request
