// A CreateContext call from its request to its answer: minutes may lie between them.
#pragma once

#include "absl/status/statusor.h"
#include "apb/inference/v1/inference_service.pb.h"
#include "grpcpp/support/server_callback.h"
#include "server/frontend/frontend.h"

namespace apb::grpc_api {

// `request` may be an error, which is then the status of the call. Frontend and response must
// outlive the call; what is returned owns itself.
grpc::ServerUnaryReactor* StartCreateContext(frontend::Frontend& frontend,
                                             absl::StatusOr<request::CanonicalRequest> request,
                                             inference::v1::Context* response);

}  // namespace apb::grpc_api
