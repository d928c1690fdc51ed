// The public gRPC service on top of the frontend. It uses the callback API, so no thread waits for
// a request.
#pragma once

#include <string>
#include <vector>

#include "apb/inference/v1/inference_service.grpc.pb.h"
#include "server/frontend/frontend.h"

namespace apb::grpc_api {

class InferenceService final : public inference::v1::InferenceService::CallbackService {
 public:
  struct Options {
    std::vector<std::string> api_keys;  // empty: everybody may call
    std::string version;
    size_t max_stream_bytes = 1 << 20;  // a client that falls further behind is cut off
  };
  // `frontend` must outlive the service's server.
  InferenceService(Options options, frontend::Frontend& frontend);

  grpc::ServerWriteReactor<inference::v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const inference::v1::GenerateRequest* message) override;
  grpc::ServerUnaryReactor* CreateContext(grpc::CallbackServerContext* context,
                                          const inference::v1::CreateContextRequest* message,
                                          inference::v1::Context* response) override;
  grpc::ServerUnaryReactor* GetContext(grpc::CallbackServerContext* context,
                                       const inference::v1::GetContextRequest* message,
                                       inference::v1::Context* response) override;
  grpc::ServerUnaryReactor* ListContexts(grpc::CallbackServerContext* context,
                                         const inference::v1::ListContextsRequest* message,
                                         inference::v1::ListContextsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteContext(grpc::CallbackServerContext* context,
                                          const inference::v1::DeleteContextRequest* message,
                                          inference::v1::DeleteContextResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const inference::v1::TokenizeRequest* message,
                                     inference::v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const inference::v1::DetokenizeRequest* message,
                                       inference::v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const inference::v1::GetModelInfoRequest* message,
                                         inference::v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const inference::v1::GetServerInfoRequest* message,
                                          inference::v1::GetServerInfoResponse* response) override;

 private:
  absl::Status Authorize(const grpc::CallbackServerContext& context) const;
  // The owner of this caller's contexts.
  std::string OwnerOf(const grpc::CallbackServerContext& context) const;
  absl::Status CheckModel(const std::string& model) const;
  // RunOnPool runs slow work on the text pool, away from gRPC's threads; RunNow runs quick work at
  // once. Both check the key first and count the call under `method`.
  grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* context, const char* method,
                                      std::function<absl::Status()> work);
  grpc::ServerUnaryReactor* RunNow(grpc::CallbackServerContext* context, const char* method,
                                   const std::function<absl::Status()>& work);

  const Options options_;
  frontend::Frontend& frontend_;
};

}  // namespace apb::grpc_api
