// One connected worker group: the sequences in flight there and the way to it. Thread-safe.
// Listeners are called with no lock held, in the order of the stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "apb/cluster/v1/worker_group_service.pb.h"

namespace apb::cluster {

// The sending half of the stream to a group's leader. Thread-safe; Send never blocks.
class GroupConnection {
 public:
  virtual ~GroupConnection() = default;
  virtual void Send(cluster::v1::ToWorker message) = 0;
  virtual void Close(const absl::Status& why) = 0;
};

// Told what happens to a sequence; after OnEnd or OnLost nothing follows.
class SequenceListener {
 public:
  virtual ~SequenceListener() = default;
  virtual void OnToken(const cluster::v1::TokenEvent& token) = 0;
  virtual void OnProgress(const cluster::v1::SequenceProgress& progress) = 0;
  virtual void OnEnd(const cluster::v1::SequenceEnd& end) = 0;
  virtual void OnLost(const std::string& why) = 0;
};

class WorkerGroup {
 public:
  WorkerGroup(cluster::v1::Hello hello, std::shared_ptr<GroupConnection> connection);

  const cluster::v1::Hello& hello() const { return hello_; }

  // Sends the sequence; `submit.sequence` is chosen here and returned. The listener is kept until
  // it ends (shared: the request itself may be dropped by its client meanwhile). kUnavailable when
  // the group is lost.
  absl::StatusOr<uint64_t> Submit(cluster::v1::Submit submit,
                                  std::shared_ptr<SequenceListener> listener);
  // The listener hears nothing more. Idempotent.
  void Cancel(uint64_t sequence);
  // Gives up the KV of a sequence that was submitted with `keep` and has ended.
  void Release(uint64_t sequence);

  // Everything but hello, stats and leaving goes to the listeners.
  void OnMessage(const cluster::v1::FromWorker& message);
  // Tells all listeners; the group takes no more sequences.
  void OnLost(const std::string& why);
  void Drain();
  void Close(const absl::Status& why) { connection_->Close(why); }

  // Prompt tokens of the sequences in flight: what the router compares.
  int64_t load_tokens() const;
  int64_t sequence_count() const;
  bool lost() const;
  // Whether it said that it takes nothing new.
  bool leaving() const;

  void set_kv_blocks_used(int64_t blocks);
  int64_t kv_blocks_used() const;

 private:
  struct Sequence {
    std::shared_ptr<SequenceListener> listener;
    int64_t tokens = 0;
  };
  std::shared_ptr<SequenceListener> Find(uint64_t sequence);
  std::shared_ptr<SequenceListener> Take(uint64_t sequence);

  const cluster::v1::Hello hello_;
  // Shared with the RPC, which may end before the group is forgotten.
  const std::shared_ptr<GroupConnection> connection_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Sequence> sequences_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t load_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t kv_blocks_used_ ABSL_GUARDED_BY(mutex_) = 0;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace apb::cluster
