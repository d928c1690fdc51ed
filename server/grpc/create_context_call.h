// A CreateContext call from its request to its answer, which may take minutes.
#pragma once

#include "absl/status/statusor.h"
#include "apb/inference/v1/inference_service.pb.h"
#include "grpcpp/support/server_callback.h"
#include "server/frontend/frontend.h"

namespace apb::grpc_api {

// Starts the call. If `request` is an error, the call ends with it. `frontend` and `response` must
// outlive the call; the returned reactor deletes itself.
grpc::ServerUnaryReactor* StartCreateContext(frontend::Frontend& frontend,
                                             absl::StatusOr<request::CanonicalRequest> request,
                                             inference::v1::Context* response);

}  // namespace apb::grpc_api
