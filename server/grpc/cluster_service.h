// Where the leaders of worker groups dial in: the stream of cluster.v1 on one side, the group
// registry on the other.
#pragma once

#include "apb/cluster/v1/worker_group_service.grpc.pb.h"
#include "server/frontend/group_registry.h"

namespace apb::grpc_api {

class ClusterService final : public cluster::v1::WorkerGroupService::CallbackService {
 public:
  // `registry` must outlive the service's server.
  explicit ClusterService(frontend::GroupRegistry& registry) : registry_(registry) {}

  grpc::ServerBidiReactor<cluster::v1::FromWorker, cluster::v1::ToWorker>* Connect(
      grpc::CallbackServerContext* context) override;

 private:
  frontend::GroupRegistry& registry_;
};

}  // namespace apb::grpc_api
