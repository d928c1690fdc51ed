// Bookkeeping of one group's sequences.
#include "server/cluster/worker_group.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "server/request/status_map.h"

namespace apb::cluster {

using cluster::v1::FromWorker;

WorkerGroup::WorkerGroup(cluster::v1::Hello hello, std::shared_ptr<GroupConnection> connection)
    : hello_(std::move(hello)), connection_(std::move(connection)) {}

absl::StatusOr<uint64_t> WorkerGroup::Submit(cluster::v1::Submit submit,
                                             std::shared_ptr<SequenceListener> listener) {
  const int64_t tokens = submit.tokens_size();
  cluster::v1::ToWorker message;
  *message.mutable_submit() = std::move(submit);
  absl::MutexLock lock(&mutex_);
  if (lost_) {
    return request::WithRetryAfter(
        absl::UnavailableError("the worker group was lost; try the request again"), 2);
  }
  const uint64_t sequence = next_sequence_++;
  message.mutable_submit()->set_sequence(sequence);
  sequences_[sequence] = {std::move(listener), tokens};
  load_tokens_ += tokens;
  connection_->Send(std::move(message));
  return sequence;
}

void WorkerGroup::Cancel(uint64_t sequence) {
  if (Take(sequence) != nullptr) Release(sequence);
}

void WorkerGroup::Release(uint64_t sequence) {
  cluster::v1::ToWorker message;
  message.mutable_cancel()->set_sequence(sequence);
  connection_->Send(std::move(message));
}

std::shared_ptr<SequenceListener> WorkerGroup::Find(uint64_t sequence) {
  absl::MutexLock lock(&mutex_);
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? nullptr : found->second.listener;
}

std::shared_ptr<SequenceListener> WorkerGroup::Take(uint64_t sequence) {
  absl::MutexLock lock(&mutex_);
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return nullptr;
  std::shared_ptr<SequenceListener> listener = std::move(found->second.listener);
  load_tokens_ -= found->second.tokens;
  sequences_.erase(found);
  return listener;
}

void WorkerGroup::OnMessage(const FromWorker& message) {
  for (const auto& token : message.tokens()) {
    if (auto listener = Find(token.sequence())) listener->OnToken(token);
  }
  switch (message.event_case()) {
    case FromWorker::kToken:
      if (auto listener = Find(message.token().sequence())) listener->OnToken(message.token());
      break;
    case FromWorker::kProgress:
      if (auto listener = Find(message.progress().sequence())) {
        listener->OnProgress(message.progress());
      }
      break;
    case FromWorker::kEnd:
      if (auto listener = Take(message.end().sequence())) listener->OnEnd(message.end());
      break;
    case FromWorker::kLeaving: {
      absl::MutexLock lock(&mutex_);
      leaving_ = true;
      break;
    }
    case FromWorker::kHello:
    case FromWorker::kStats:
    case FromWorker::EVENT_NOT_SET:
      break;
  }
}

void WorkerGroup::OnLost(const std::string& why) {
  std::vector<std::shared_ptr<SequenceListener>> listeners;
  {
    absl::MutexLock lock(&mutex_);
    lost_ = true;
    for (auto& [id, sequence] : sequences_) listeners.push_back(std::move(sequence.listener));
    sequences_.clear();
    load_tokens_ = 0;
  }
  for (const auto& listener : listeners) listener->OnLost(why);
}

void WorkerGroup::Drain() {
  cluster::v1::ToWorker message;
  message.mutable_drain();
  connection_->Send(std::move(message));
}

int64_t WorkerGroup::load_tokens() const {
  absl::MutexLock lock(&mutex_);
  return load_tokens_;
}

int64_t WorkerGroup::sequence_count() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(sequences_.size());
}

bool WorkerGroup::lost() const {
  absl::MutexLock lock(&mutex_);
  return lost_;
}

bool WorkerGroup::leaving() const {
  absl::MutexLock lock(&mutex_);
  return leaving_;
}

void WorkerGroup::set_kv_blocks_used(int64_t blocks) {
  absl::MutexLock lock(&mutex_);
  kv_blocks_used_ = blocks;
}

int64_t WorkerGroup::kv_blocks_used() const {
  absl::MutexLock lock(&mutex_);
  return kv_blocks_used_;
}

}  // namespace apb::cluster
