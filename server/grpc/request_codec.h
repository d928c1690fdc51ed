// Translates messages of apb.inference.v1 into canonical requests, and events into messages. Pure
// functions.
#pragma once

#include "absl/status/statusor.h"
#include "apb/inference/v1/inference_service.pb.h"
#include "server/request/canonical_request.h"
#include "server/request/events.h"

namespace apb::grpc_api {

// kInvalidArgument for input that a canonical request cannot express. Admission checks the ranges.
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::GenerateRequest& message);
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::CreateContextRequest& message);
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::TokenizeRequest& message);

inference::v1::Context ToMessage(const request::ContextInfo& context, const std::string& model);

// Translates an event of Generate. Not for Failed, which is the status of the call.
inference::v1::GenerateResponse ToMessage(const request::Event& event,
                                          const std::string& request_id);

}  // namespace apb::grpc_api
