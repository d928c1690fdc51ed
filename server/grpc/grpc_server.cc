// Builds and stops the gRPC servers.
#include "server/grpc/grpc_server.h"

#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace apb::grpc_api {
namespace {

constexpr char kServiceName[] = "apb.inference.v1.InferenceService";

// Long prefills send nothing for minutes: server pings find dead peers, and clients may ping often.
void SetKeepalive(grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  // Without this option two servers could bind one port and share its clients by chance.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

std::unique_ptr<grpc::Server> Listen(grpc::ServerBuilder* builder, const std::string& address,
                                     int* port) {
  SetKeepalive(builder);
  builder->AddListeningPort(address, grpc::InsecureServerCredentials(), port);
  std::unique_ptr<grpc::Server> server = builder->BuildAndStart();
  if (*port == 0) return nullptr;
  return server;
}

}  // namespace

GrpcServer::GrpcServer(InferenceService::Options options, frontend::Frontend& frontend,
                       cluster::GroupRegistry& registry)
    : inference_service_(std::move(options), frontend), cluster_service_(registry) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const Options& options,
                                                              frontend::Frontend& frontend,
                                                              cluster::GroupRegistry& registry) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> server(new GrpcServer(options.service, frontend, registry));

  grpc::ServerBuilder public_builder;
  public_builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  public_builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 256);
  public_builder.RegisterService(&server->inference_service_);
  const std::string address = absl::StrCat(options.host, ":", options.port);
  server->public_server_ = Listen(&public_builder, address, &server->port_);
  if (server->public_server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, " for gRPC: is it taken?"));
  }
  server->SetServing(false);

  grpc::ServerBuilder cluster_builder;
  cluster_builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  cluster_builder.RegisterService(&server->cluster_service_);
  const std::string cluster_address = absl::StrCat(options.cluster_host, ":", options.cluster_port);
  server->cluster_server_ = Listen(&cluster_builder, cluster_address, &server->cluster_port_);
  if (server->cluster_server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", cluster_address, " for worker groups: is it taken?"));
  }
  return server;
}

GrpcServer::~GrpcServer() { Shutdown(absl::Now()); }

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = public_server_->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

void GrpcServer::Shutdown(absl::Time deadline) {
  if (public_server_ != nullptr) public_server_->Shutdown(absl::ToChronoTime(deadline));
  if (cluster_server_ != nullptr) cluster_server_->Shutdown(absl::ToChronoTime(deadline));
}

}  // namespace apb::grpc_api
