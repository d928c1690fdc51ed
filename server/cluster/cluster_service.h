// The service to which the leaders of worker groups connect. It translates between a cluster.v1
// stream and the group registry.
#pragma once

#include "apb/cluster/v1/worker_group_service.grpc.pb.h"
#include "server/cluster/group_registry.h"

namespace apb::cluster {

class ClusterService final : public cluster::v1::WorkerGroupService::CallbackService {
 public:
  // `registry` must outlive the service's server.
  explicit ClusterService(GroupRegistry& registry) : registry_(registry) {}

  grpc::ServerBidiReactor<cluster::v1::FromWorker, cluster::v1::ToWorker>* Connect(
      grpc::CallbackServerContext* context) override;

 private:
  GroupRegistry& registry_;
};

}  // namespace apb::cluster
