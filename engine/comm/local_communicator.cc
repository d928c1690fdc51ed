// Every collective takes the same two steps. All ranks post the view that they send. Then each rank
// copies the bytes that it receives from the other ranks' views, and waits until all ranks have
// copied theirs.
#include "engine/comm/local_communicator.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"

namespace apb::comm {
namespace {

using kernels::Stream;
using kernels::TensorView;

std::byte* At(const TensorView& view, int64_t byte) {
  return static_cast<std::byte*>(view.data) + byte;
}
void CopyBytes(std::byte* target, const std::byte* source, int64_t bytes) {
  if (bytes > 0) std::memcpy(target, source, bytes);
}

struct Posting {
  std::string operation;
  TensorView send;
  int target = -1;  // rank that gets the view; send_recv only
};

// The meeting point of the ranks. Each rank counts its calls, so all ranks give the same number to
// the same operation.
class Group {
 public:
  Group(int size, absl::Duration deadline) : size_(size), deadline_(deadline) {}
  int size() const { return size_; }

  absl::Status Post(uint64_t number, int rank, Posting posting) {
    absl::MutexLock lock(&mutex_);
    APB_RETURN_IF_ERROR(broken_);
    Meeting& meeting = meetings_[number];
    if (meeting.postings.empty()) meeting.postings.resize(size_);
    for (const Posting& other : meeting.postings) {
      if (!other.operation.empty() && other.operation != posting.operation) {
        return Break(absl::StrCat("rank ", rank, " calls ", posting.operation,
                                  " where another calls ", other.operation));
      }
    }
    meeting.postings[rank] = std::move(posting);
    ++meeting.posted;
    changed_.SignalAll();
    return absl::OkStatus();
  }

  // The postings of all ranks; they stay until every rank has called Leave.
  absl::StatusOr<std::vector<Posting>> Meet(uint64_t number) {
    absl::MutexLock lock(&mutex_);
    APB_RETURN_IF_ERROR(Await(number, [&] { return meetings_[number].posted == size_; }));
    return meetings_[number].postings;
  }

  absl::Status Leave(uint64_t number) {
    absl::MutexLock lock(&mutex_);
    Meeting& meeting = meetings_[number];
    if (++meeting.left == size_) {
      meetings_.erase(number);
      changed_.SignalAll();
      return absl::OkStatus();
    }
    return Await(number, [&] { return !meetings_.contains(number); });
  }

  absl::Status Fail(const std::string& reason) {
    absl::MutexLock lock(&mutex_);
    return Break(reason);
  }

 private:
  struct Meeting {
    std::vector<Posting> postings;
    int posted = 0;
    int left = 0;
  };

  absl::Status Break(const std::string& reason) {  // mutex_ is held
    if (broken_.ok()) broken_ = absl::UnavailableError(reason);
    changed_.SignalAll();
    return broken_;
  }
  absl::Status Await(uint64_t number, const std::function<bool()>& done) {  // mutex_ is held
    const absl::Time until = absl::Now() + deadline_;
    while (!done()) {
      APB_RETURN_IF_ERROR(broken_);
      if (changed_.WaitWithDeadline(&mutex_, until) && !done() && broken_.ok()) {
        return Break(absl::StrCat("operation ", number, ": a rank did not answer within ",
                                  absl::FormatDuration(deadline_)));
      }
    }
    return absl::OkStatus();
  }

  const int size_;
  const absl::Duration deadline_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::Status broken_;
  std::map<uint64_t, Meeting> meetings_;
};

absl::Status Mismatch(const Collective& c, size_t rank) {
  return absl::InternalError(
      absl::StrCat(c.name(), ": what rank ", rank, " gives does not fit what is wanted"));
}

// Writes to c.recv the reduction over all ranks' elements, in rank order.
absl::Status Reduce(const Collective& c, const std::vector<Posting>& postings) {
  // Sizes are checked before anything is read: a rank that finds a mismatch leaves, and frees the
  // memory that it posted.
  for (size_t r = 0; r < postings.size(); ++r) {
    if (postings[r].send.numel() != c.recv.numel()) return Mismatch(c, r);
  }
  float* out = c.recv.as<float>();
  for (size_t r = 0; r < postings.size(); ++r) {
    const float* in = postings[r].send.as<float>();
    for (int64_t i = 0; i < c.recv.numel(); ++i) {
      out[i] = r == 0 ? in[i] : c.op == ReduceOp::kSum ? out[i] + in[i] : std::max(out[i], in[i]);
    }
  }
  return absl::OkStatus();
}

// Copies `bytes` of rank r's view, from byte `from` on, to c.recv's byte `to`. The view must have
// `whole` bytes.
absl::Status CopyPart(const Collective& c, const std::vector<Posting>& postings, size_t r,
                      int64_t whole, int64_t from, int64_t to, int64_t bytes) {
  if (BytesOf(postings[r].send) != whole) return Mismatch(c, r);
  CopyBytes(At(c.recv, to), At(postings[r].send, from), bytes);
  return absl::OkStatus();
}

// Fills this rank's c.recv from the views that all ranks have posted.
absl::Status Receive(const Collective& c, const std::vector<Posting>& postings, int rank) {
  const int64_t all = BytesOf(c.recv), size = static_cast<int64_t>(postings.size());
  switch (c.kind) {
    case Collective::Kind::kAllGather:
      for (int64_t r = 0, part = all / size; r < size; ++r)
        APB_RETURN_IF_ERROR(CopyPart(c, postings, r, part, 0, r * part, part));
      return absl::OkStatus();
    case Collective::Kind::kAllGatherV: {
      const int64_t row = c.recv.rows() == 0 ? 0 : all / c.recv.rows();
      for (int64_t r = 0, at = 0; r < size; at += c.counts[r] * row, ++r)
        APB_RETURN_IF_ERROR(CopyPart(c, postings, r, c.counts[r] * row, 0, at, c.counts[r] * row));
      return absl::OkStatus();
    }
    case Collective::Kind::kAllReduce:
      return Reduce(c, postings);
    case Collective::Kind::kAllToAll:
      for (int64_t r = 0, part = all / size; r < size; ++r)
        APB_RETURN_IF_ERROR(CopyPart(c, postings, r, all, rank * part, r * part, part));
      return absl::OkStatus();
    case Collective::Kind::kSendRecv:
      if (postings[c.source].target != rank) return Mismatch(c, c.source);
      break;
    case Collective::Kind::kBroadcast:
      if (rank == c.source) return absl::OkStatus();
      break;
  }
  return CopyPart(c, postings, c.source, all, 0, 0, all);
}

class LocalCommunicator;

class LocalPending : public Pending {
 public:
  LocalPending(LocalCommunicator& owner, uint64_t number, const Collective& collective)
      : owner_(owner),
        number_(number),
        collective_(collective),
        counts_(collective.counts.begin(), collective.counts.end()) {
    collective_.counts = counts_;
    if (collective.kind != Collective::Kind::kAllReduce) return;
    const float* data = collective.recv.as<float>();
    copy_.assign(data, data + collective.recv.numel());
  }
  // The view that this rank posts. all_reduce is in place: the other ranks read a copy while this
  // rank writes to its data.
  TensorView posted() {
    if (collective_.kind == Collective::Kind::kBroadcast) return collective_.recv;
    if (collective_.kind != Collective::Kind::kAllReduce) return collective_.send;
    return TensorView::Contiguous(copy_.data(), kernels::DType::kF32,
                                  {static_cast<int64_t>(copy_.size())});
  }
  absl::Status Wait(Stream& stream) override;

 private:
  LocalCommunicator& owner_;
  const uint64_t number_;
  Collective collective_;
  const std::vector<int64_t> counts_;
  std::vector<float> copy_;
};

class LocalCommunicator : public Communicator {
 public:
  // The communicators of all ranks own the group together.
  LocalCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  bool recordable() const override { return false; }

  absl::Status Barrier() override {
    APB_RETURN_IF_ERROR(group_->Post(next_, rank_, {.operation = "barrier", .send = {}}));
    return Complete(next_++, "barrier", 0,
                    [](const std::vector<Posting>&) { return absl::OkStatus(); });
  }

  void Abort(std::string reason) override {
    group_->Fail(absl::StrCat("aborted: ", reason)).IgnoreError();
  }

  CommunicatorStats stats() const override {
    CommunicatorStats stats;
    for (const auto& [name, operation] : operations_) stats.operations.push_back(operation);
    return stats;
  }

  // Waits for the postings of all ranks, calls receive(postings), and counts the operation.
  absl::Status Complete(
      uint64_t number, const char* operation, int64_t bytes_sent,
      const absl::FunctionRef<absl::Status(const std::vector<Posting>&)> receive) {
    const absl::Time start = absl::Now();
    absl::Status status = [&] {
      APB_ASSIGN_OR_RETURN(const std::vector<Posting> postings, group_->Meet(number));
      if (absl::Status received = receive(postings); !received.ok())
        return group_->Fail(std::string(received.message()));
      return group_->Leave(number);
    }();
    CommunicatorStats::Operation& counted = operations_[operation];
    counted.name = operation;
    ++counted.calls;
    counted.bytes_sent += bytes_sent;
    counted.seconds += absl::ToDoubleSeconds(absl::Now() - start);
    if (status.ok()) return status;
    return absl::UnavailableError(absl::StrCat(operation, ": ", status.message()));
  }

 private:
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& c, Stream& stream) override {
    APB_RETURN_IF_ERROR(stream.Synchronize());
    auto pending = std::make_unique<LocalPending>(*this, next_, c);
    APB_RETURN_IF_ERROR(group_->Post(
        next_, rank_, {.operation = c.name(), .send = pending->posted(), .target = c.target}));
    ++next_;
    return pending;
  }

  const std::shared_ptr<Group> group_;
  const int rank_;
  uint64_t next_ = 0;
  std::map<std::string, CommunicatorStats::Operation> operations_;
};

absl::Status LocalPending::Wait(Stream&) {
  const int rank = owner_.rank();
  return owner_.Complete(
      number_, collective_.name(), collective_.BytesSent(rank, owner_.size()),
      [&](const std::vector<Posting>& postings) { return Receive(collective_, postings, rank); });
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size, absl::Duration deadline) {
  auto group = std::make_shared<Group>(size, deadline);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<LocalCommunicator>(group, r));
  return ranks;
}

}  // namespace apb::comm
