// Every collective takes the same two steps. All ranks post the view that they send. Then each rank
// copies the bytes that it receives from the other ranks' views, and waits until all ranks have
// copied theirs.
#include "engine/comm/local_communicator.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"

namespace apb::comm {
namespace {

using kernels::Stream;
using kernels::TensorView;

int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(SizeOf(view.dtype));
}
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

using Consume = std::function<absl::Status(const std::vector<Posting>&)>;

class LocalCommunicator;

class LocalPending : public Pending {
 public:
  LocalPending(LocalCommunicator& owner, uint64_t number, const char* operation, int64_t bytes_sent,
               Consume consume)
      : owner_(owner),
        number_(number),
        operation_(operation),
        bytes_sent_(bytes_sent),
        consume_(std::move(consume)) {}
  absl::Status Wait(Stream& stream) override;

 private:
  LocalCommunicator& owner_;
  const uint64_t number_;
  const char* const operation_;
  const int64_t bytes_sent_;
  const Consume consume_;
};

class LocalCommunicator : public Communicator {
 public:
  // The communicators of all ranks own the group together.
  LocalCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  bool recordable() const override { return false; }

  absl::Status AllGather(const TensorView& send, const TensorView& recv, Stream& stream) override {
    return WaitFor(StartAllGather(send, recv, stream), stream);
  }

  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const TensorView& send,
                                                          const TensorView& recv,
                                                          Stream& stream) override {
    if (Bytes(recv) != Bytes(send) * size())
      return absl::InvalidArgumentError("all_gather: recv must be size() times send");
    return Start("all_gather", send, -1, Bytes(send) * (size() - 1), stream,
                 [recv](const std::vector<Posting>& postings) {
                   const int64_t part = Bytes(recv) / static_cast<int64_t>(postings.size());
                   for (size_t r = 0; r < postings.size(); ++r) {
                     if (Bytes(postings[r].send) != part) return Mismatch("all_gather", r);
                     CopyBytes(At(recv, r * part), At(postings[r].send, 0), part);
                   }
                   return absl::OkStatus();
                 });
  }

  absl::Status AllGatherV(const TensorView& send, const TensorView& recv,
                          std::span<const int64_t> counts, Stream& stream) override {
    const int64_t rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    if (static_cast<int>(counts.size()) != size() || rows != recv.rows() ||
        counts[rank_] != send.rows()) {
      return absl::InvalidArgumentError("all_gather_v: counts do not match the views");
    }
    const std::vector<int64_t> parts(counts.begin(), counts.end());
    return WaitFor(Start("all_gather_v", send, -1, Bytes(send) * (size() - 1), stream,
                         [recv, parts, rows](const std::vector<Posting>& postings) {
                           const int64_t row = rows == 0 ? 0 : Bytes(recv) / rows;
                           int64_t at = 0;
                           for (size_t r = 0; r < parts.size(); at += parts[r] * row, ++r) {
                             if (Bytes(postings[r].send) != parts[r] * row)
                               return Mismatch("all_gather_v", r);
                             CopyBytes(At(recv, at), At(postings[r].send, 0), parts[r] * row);
                           }
                           return absl::OkStatus();
                         }),
                   stream);
  }

  absl::Status AllReduce(const TensorView& data, ReduceOp op, Stream& stream) override {
    // The reduction is in place: the other ranks read this copy while this rank writes to `data`.
    std::vector<float> mine(data.as<float>(), data.as<float>() + data.numel());
    const TensorView send =
        TensorView::Contiguous(mine.data(), kernels::DType::kF32, {data.numel()});
    return WaitFor(Start("all_reduce", send, -1, Bytes(send), stream,
                         [data, op](const std::vector<Posting>& postings) {
                           return Reduce("all_reduce", postings, 0, data, op);
                         }),
                   stream);
  }

  absl::Status AllToAll(const TensorView& send, const TensorView& recv, Stream& stream) override {
    if (Bytes(send) != Bytes(recv) || Bytes(send) % size() != 0)
      return absl::InvalidArgumentError("all_to_all: size() equal parts wanted");
    return WaitFor(Start("all_to_all", send, -1, Bytes(send) / size() * (size() - 1), stream,
                         [recv, rank = rank_](const std::vector<Posting>& postings) {
                           const int64_t part = Bytes(recv) / static_cast<int64_t>(postings.size());
                           for (size_t r = 0; r < postings.size(); ++r) {
                             if (Bytes(postings[r].send) != Bytes(recv))
                               return Mismatch("all_to_all", r);
                             CopyBytes(At(recv, r * part), At(postings[r].send, rank * part), part);
                           }
                           return absl::OkStatus();
                         }),
                   stream);
  }

  absl::Status SendRecv(const TensorView& send, int target, const TensorView& recv, int source,
                        Stream& stream) override {
    return WaitFor(StartSendRecv(send, target, recv, source, stream), stream);
  }

  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const TensorView& send, int target,
                                                         const TensorView& recv, int source,
                                                         Stream& stream) override {
    if (target < 0 || target >= size() || source < 0 || source >= size())
      return absl::InvalidArgumentError("send_recv: no such rank");
    return Start("send_recv", send, target, Bytes(send), stream,
                 [recv, source, rank = rank_](const std::vector<Posting>& postings) {
                   const Posting& from = postings[source];
                   if (from.target != rank || Bytes(from.send) != Bytes(recv))
                     return Mismatch("send_recv", source);
                   CopyBytes(At(recv, 0), At(from.send, 0), Bytes(recv));
                   return absl::OkStatus();
                 });
  }

  absl::Status Broadcast(const TensorView& data, int root, Stream& stream) override {
    if (root < 0 || root >= size()) return absl::InvalidArgumentError("broadcast: no such rank");
    return WaitFor(
        Start("broadcast", data, -1, rank_ == root ? Bytes(data) * (size() - 1) : 0, stream,
              [data, root, rank = rank_](const std::vector<Posting>& postings) {
                if (rank == root) return absl::OkStatus();
                if (Bytes(postings[root].send) != Bytes(data)) return Mismatch("broadcast", root);
                CopyBytes(At(data, 0), At(postings[root].send, 0), Bytes(data));
                return absl::OkStatus();
              }),
        stream);
  }

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

  absl::Status Complete(uint64_t number, const char* operation, int64_t bytes_sent,
                        const Consume& consume) {
    const absl::Time start = absl::Now();
    absl::Status status = [&] {
      APB_ASSIGN_OR_RETURN(const std::vector<Posting> postings, group_->Meet(number));
      if (absl::Status consumed = consume(postings); !consumed.ok())
        return group_->Fail(std::string(consumed.message()));
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
  static absl::Status Mismatch(const char* operation, size_t rank) {
    return absl::InternalError(
        absl::StrCat(operation, ": what rank ", rank, " gives does not fit what is wanted"));
  }

  // Writes to `target` the reduction over all ranks' elements from `offset` on, in rank order.
  static absl::Status Reduce(const char* operation, const std::vector<Posting>& postings,
                             int64_t offset, const TensorView& target, ReduceOp op) {
    // Sizes are checked before anything is read: a rank that finds a mismatch leaves, and frees the
    // memory that it posted.
    for (size_t r = 0; r < postings.size(); ++r) {
      if (postings[r].send.numel() != postings[0].send.numel() ||
          postings[r].send.numel() < offset + target.numel()) {
        return Mismatch(operation, r);
      }
    }
    float* out = target.as<float>();
    for (size_t r = 0; r < postings.size(); ++r) {
      const float* in = postings[r].send.as<float>() + offset;
      for (int64_t i = 0; i < target.numel(); ++i) {
        out[i] = r == 0 ? in[i] : op == ReduceOp::kSum ? out[i] + in[i] : std::max(out[i], in[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Pending>> Start(const char* operation, const TensorView& send,
                                                 int target, int64_t bytes_sent, Stream& stream,
                                                 Consume consume) {
    APB_RETURN_IF_ERROR(stream.Synchronize());
    APB_RETURN_IF_ERROR(
        group_->Post(next_, rank_, {.operation = operation, .send = send, .target = target}));
    return std::make_unique<LocalPending>(*this, next_++, operation, bytes_sent,
                                          std::move(consume));
  }
  static absl::Status WaitFor(absl::StatusOr<std::unique_ptr<Pending>> pending, Stream& stream) {
    return pending.ok() ? (*pending)->Wait(stream) : pending.status();
  }

  const std::shared_ptr<Group> group_;
  const int rank_;
  uint64_t next_ = 0;
  std::map<std::string, CommunicatorStats::Operation> operations_;
};

absl::Status LocalPending::Wait(Stream&) {
  return owner_.Complete(number_, operation_, bytes_sent_, consume_);
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size, absl::Duration deadline) {
  auto group = std::make_shared<Group>(size, deadline);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<LocalCommunicator>(group, r));
  return ranks;
}

}  // namespace apb::comm
