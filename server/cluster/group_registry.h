// The connected worker groups, and the choice of the one that takes the next request. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "apb/cluster/v1/worker_group_service.pb.h"
#include "server/cluster/worker_group.h"
#include "server/observability/metrics.h"
#include "server/request/admission.h"

namespace apb::cluster {

// A snapshot of one connected group. Token counts cover its whole KV cache.
struct GroupInfo {
  std::string id;
  int ranks = 0;
  bool ready = false;
  int64_t kv_tokens_total = 0;
  int64_t kv_tokens_used = 0;
  bool has_retaining_heads = false;
  std::string dtype;
  std::string weight_type;
  observability::GroupCalibration calibration;
};

class GroupRegistry {
 public:
  struct Options {
    std::string fingerprint;  // of the model for which this server tokenizes
    std::string token;        // secret that a group must know; empty: no secret needed
  };
  // `metrics` must outlive the registry.
  GroupRegistry(Options options, observability::Metrics& metrics);

  // The listener is called with true when the first group becomes ready, and with false when the
  // last one leaves or is lost. Set it before any group connects.
  void SetReadinessListener(std::function<void(bool ready)> listener);

  // Checks the hello and adds the group. kPermissionDenied: wrong secret. kFailedPrecondition:
  // another model. kInvalidArgument: no ranks or no max_model_len. A group that connects again
  // under the same id replaces its old connection.
  absl::StatusOr<std::shared_ptr<WorkerGroup>> Connect(const cluster::v1::Hello& hello,
                                                       std::shared_ptr<GroupConnection> connection);
  // Passes a message on to the group, and statistics to the metrics.
  void OnMessage(WorkerGroup& group, const cluster::v1::FromWorker& message);
  // Removes the group and fails the sequences in flight on it.
  void Disconnect(const std::shared_ptr<WorkerGroup>& group, const std::string& why);

  // The least loaded group that can hold a sequence of so many tokens; null if there is none.
  std::shared_ptr<WorkerGroup> Pick(int64_t tokens) const;
  // True if a group takes new requests.
  bool ready() const;
  // "no worker group is ready", and the reason where it is known.
  std::string absence() const;
  // Sets that reason; it is forgotten when a group connects.
  void SetAbsenceReason(std::string why);
  // How often a group with this id has connected.
  int64_t connections(const std::string& id) const;
  // The most tokens that one sequence may have on a connected group; 0 without groups.
  int64_t max_model_len() const;
  std::vector<GroupInfo> Describe() const;
  // The strategies that a request may name: `auto` and those of the ready groups, in the order in
  // which the groups list them. Empty while no group is ready.
  std::vector<request::Strategy> Strategies() const;
  std::vector<std::string> StrategyNames() const;
  // Asks every group to finish its sequences and to end.
  void DrainAll();

 private:
  void OnStats(WorkerGroup& group, const cluster::v1::GroupStats& stats);
  // Tells the listener about changes of readiness, in their order.
  void AnnounceReadiness();

  const Options options_;
  observability::Metrics& metrics_;
  mutable absl::Mutex mutex_;
  std::vector<std::shared_ptr<WorkerGroup>> groups_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int64_t> connections_ ABSL_GUARDED_BY(mutex_);
  std::string absence_reason_ ABSL_GUARDED_BY(mutex_);
  absl::Mutex announce_mutex_;
  bool announced_ ABSL_GUARDED_BY(announce_mutex_) = false;
  std::function<void(bool)> readiness_listener_;
};

}  // namespace apb::cluster
