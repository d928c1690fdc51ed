// The worker groups that are connected, and which of them takes the next request. Thread-safe.
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
    std::string fingerprint;  // of the model that this server tokenizes for
    std::string token;        // secret that a group must know; empty: none
  };
  // `metrics` must outlive the registry.
  GroupRegistry(Options options, observability::Metrics& metrics);

  // Called with true when the first group gets ready and with false when the last one leaves or is
  // lost; set it before any group connects.
  void SetReadinessListener(std::function<void(bool ready)> listener);

  // Checks the hello. kPermissionDenied: wrong secret. kFailedPrecondition: another model. A group
  // that connects again under the same id replaces the old connection.
  absl::StatusOr<std::shared_ptr<WorkerGroup>> Connect(const cluster::v1::Hello& hello,
                                                       std::shared_ptr<GroupConnection> connection);
  void OnMessage(WorkerGroup& group, const cluster::v1::FromWorker& message);
  // Fails what is in flight there.
  void Disconnect(const std::shared_ptr<WorkerGroup>& group, const std::string& why);

  // The least loaded group that can hold so many tokens, or null.
  std::shared_ptr<WorkerGroup> Pick(int64_t tokens) const;
  bool ready() const;
  // "no worker group is ready", and why where that is known.
  std::string absence() const;
  // Says why; forgotten when a group connects.
  void SetAbsenceReason(std::string why);
  // How often a group of this id has connected.
  int64_t connections(const std::string& id) const;
  // The most tokens that a connected group can hold; 0 when there is none.
  int64_t max_model_len() const;
  std::vector<GroupInfo> Describe() const;
  // What a request may ask for: `auto`, and the strategies of the groups that are ready, in the
  // order in which they tell them. Empty while none is ready.
  std::vector<request::Strategy> Strategies() const;
  std::vector<std::string> StrategyNames() const;
  void DrainAll();

 private:
  void OnStats(WorkerGroup& group, const cluster::v1::GroupStats& stats);
  // Tells the listener when readiness has changed, in the order of the changes.
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
