// The two gRPC listeners: the public one with health and reflection, and the one to which worker
// groups connect.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "server/cluster/cluster_service.h"
#include "server/grpc/inference_service.h"

namespace apb::grpc_api {

class GrpcServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";
    int port = 0;  // 0: any free port
    std::string cluster_host = "127.0.0.1";
    int cluster_port = 0;
    int max_message_bytes = 64 << 20;
    InferenceService::Options service;
  };
  // Both ports are bound when this returns. kUnavailable names a port that is taken. `frontend` and
  // `registry` must outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const Options& options,
                                                           frontend::Frontend& frontend,
                                                           cluster::GroupRegistry& registry);
  ~GrpcServer();

  // Sets the answer of the standard health service for "" and for the inference service.
  void SetServing(bool serving);
  // Lets running calls go on until the deadline, then cancels them.
  void Shutdown(absl::Time deadline);

  int port() const { return port_; }
  int cluster_port() const { return cluster_port_; }

 private:
  GrpcServer(InferenceService::Options options, frontend::Frontend& frontend,
             cluster::GroupRegistry& registry);

  InferenceService inference_service_;
  cluster::ClusterService cluster_service_;
  std::unique_ptr<grpc::Server> public_server_;
  std::unique_ptr<grpc::Server> cluster_server_;
  int port_ = 0;
  int cluster_port_ = 0;
};

}  // namespace apb::grpc_api
