// Messages of apb.inference.v1 to canonical requests, events to messages. Pure functions.
#pragma once

#include "absl/status/statusor.h"
#include "apb/inference/v1/inference_service.pb.h"
#include "server/request/canonical_request.h"
#include "server/request/events.h"

namespace apb::grpc_api {

// kInvalidArgument for what the canonical request cannot say; ranges are left to admission.
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::GenerateRequest& message);
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::CreateContextRequest& message);
absl::StatusOr<request::CanonicalRequest> FromMessage(
    const inference::v1::TokenizeRequest& message);

inference::v1::Context ToMessage(const request::ContextInfo& context, const std::string& model);

// An event of Generate; not for Failed, which is the status of the call.
inference::v1::GenerateResponse ToMessage(const request::Event& event,
                                          const std::string& request_id);

}  // namespace apb::grpc_api
