// One connected worker group: its sequences in flight and the connection to it. Thread-safe.
// Listeners are called without any lock, in the order of the messages.
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

// Hears what happens to one sequence. OnEnd or OnLost is the last call.
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

  // Sends the sequence and returns the number that it gets here (`submit.sequence`). The listener
  // is kept until the sequence ends; it is shared, because the client may drop the request before.
  // kUnavailable when the group is lost.
  absl::StatusOr<uint64_t> Submit(cluster::v1::Submit submit,
                                  std::shared_ptr<SequenceListener> listener);
  // Ends a sequence; its listener hears nothing more. Idempotent.
  void Cancel(uint64_t sequence);
  // Gives up the KV of an ended sequence that was submitted with `keep`.
  void Release(uint64_t sequence);

  // Calls the listeners for tokens, progress and ends, and notes that the group leaves. Ignores
  // hello and stats.
  void OnMessage(const cluster::v1::FromWorker& message);
  // Tells all listeners. The group takes no more sequences.
  void OnLost(const std::string& why);
  // Asks the group to finish its sequences and to end.
  void Drain();
  void Close(const absl::Status& why) { connection_->Close(why); }

  // Prompt tokens of the sequences in flight; GroupRegistry::Pick compares them.
  int64_t load_tokens() const;
  int64_t sequence_count() const;
  bool lost() const;
  // True once the group has said that it takes no new sequences.
  bool leaving() const;

  void set_kv_blocks_used(int64_t blocks);
  int64_t kv_blocks_used() const;

 private:
  struct Sequence {
    std::shared_ptr<SequenceListener> listener;
    int64_t tokens = 0;
  };
  // Null for an unknown sequence. Take also removes it.
  std::shared_ptr<SequenceListener> Find(uint64_t sequence);
  std::shared_ptr<SequenceListener> Take(uint64_t sequence);

  const cluster::v1::Hello hello_;
  // Shared with the RPC, which may end before the registry drops the group.
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
