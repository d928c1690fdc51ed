// A worker group without workers: it records the messages that the server sends, and the test plays
// its part. Also a client that records its events.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/cluster/worker_group.h"
#include "server/request/events.h"

namespace apb::server_test {

// Records the messages that are sent to the leader. Thread-safe.
class ScriptedConnection final : public cluster::GroupConnection {
 public:
  void Send(cluster::v1::ToWorker message) override {
    absl::MutexLock lock(&mutex_);
    sent_.push_back(std::move(message));
  }
  void Close(const absl::Status& why) override {
    absl::MutexLock lock(&mutex_);
    closed_.push_back(why);
  }

  std::vector<cluster::v1::ToWorker> sent() const {
    absl::MutexLock lock(&mutex_);
    return sent_;
  }
  std::vector<absl::Status> closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }
  std::vector<cluster::v1::Submit> submits() const {
    std::vector<cluster::v1::Submit> all;
    for (const auto& message : sent()) {
      if (message.has_submit()) all.push_back(message.submit());
    }
    return all;
  }
  // The sequences that were cancelled.
  std::vector<uint64_t> cancels() const {
    std::vector<uint64_t> all;
    for (const auto& message : sent()) {
      if (message.has_cancel()) all.push_back(message.cancel().sequence());
    }
    return all;
  }
  // Waits for the first submitted sequence and returns it; 0 if none comes within two minutes.
  uint64_t AwaitSequence() const {
    absl::MutexLock lock(&mutex_);
    auto submitted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      for (const auto& message : sent_) {
        if (message.has_submit()) return true;
      }
      return false;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&submitted), absl::Minutes(2))) return 0;
    for (const auto& message : sent_) {
      if (message.has_submit()) return message.submit().sequence();
    }
    return 0;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<cluster::v1::ToWorker> sent_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Status> closed_ ABSL_GUARDED_BY(mutex_);
};

inline cluster::v1::Hello HelloOf(const std::string& id, int64_t max_model_len = 4096) {
  cluster::v1::Hello hello;
  hello.set_group_id(id);
  hello.set_ranks(2);
  hello.set_max_model_len(max_model_len);
  hello.set_kv_block_size(16);
  hello.set_kv_blocks_total(1024);
  return hello;
}

// Messages that a leader sends about a sequence.
inline cluster::v1::FromWorker ProgressOf(uint64_t sequence, int64_t processed = 0) {
  cluster::v1::FromWorker message;
  message.mutable_progress()->set_sequence(sequence);
  message.mutable_progress()->set_processed_tokens(processed);
  message.mutable_progress()->set_strategy("full");
  return message;
}
inline cluster::v1::FromWorker TokenOf(uint64_t sequence, int32_t token) {
  cluster::v1::FromWorker message;
  message.mutable_token()->set_sequence(sequence);
  message.mutable_token()->set_token(token);
  return message;
}
inline cluster::v1::FromWorker EndOf(uint64_t sequence, cluster::v1::EndReason reason,
                                     absl::StatusCode code = absl::StatusCode::kOk) {
  cluster::v1::FromWorker message;
  message.mutable_end()->set_sequence(sequence);
  message.mutable_end()->set_reason(reason);
  message.mutable_end()->set_status_code(static_cast<int32_t>(code));
  message.mutable_end()->set_message(code == absl::StatusCode::kOk ? "" : "why");
  message.mutable_end()->set_strategy("full");
  return message;
}

// Records one letter for each event: Q(ueued), P(rogress), T(oken chunk), C(ompleted), X for
// ContextInfo, F(ailed). Thread-safe.
class RecordingSink final : public request::EventSink {
 public:
  // The client takes this many events; every later one is too much for it.
  explicit RecordingSink(size_t takes = SIZE_MAX) : takes_(takes) {}

  bool OnEvent(request::Event event) override {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
    return events_.size() <= takes_;
  }
  std::vector<request::Event> events() const {
    absl::MutexLock lock(&mutex_);
    return events_;
  }
  std::string letters() const {
    absl::MutexLock lock(&mutex_);
    return LettersLocked();
  }
  // Waits for an event that ends the request; true if it came within two minutes.
  bool AwaitEnd() const {
    absl::MutexLock lock(&mutex_);
    auto ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return LettersLocked().find_first_of("CXF") != std::string::npos;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&ended), absl::Minutes(2));
  }
  // The status of the last event, which must be Failed.
  absl::Status failure() const {
    absl::MutexLock lock(&mutex_);
    if (events_.empty() || !std::holds_alternative<request::Failed>(events_.back())) {
      return absl::UnknownError("the last event is not Failed");
    }
    return std::get<request::Failed>(events_.back()).status;
  }

 private:
  std::string LettersLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::string letters;
    for (const request::Event& event : events_) letters += "QPTCXF"[event.index()];
    return letters;
  }

  const size_t takes_;
  mutable absl::Mutex mutex_;
  std::vector<request::Event> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace apb::server_test
