#include "engine/parallel/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::parallel {
namespace {

using kernels::TensorView;
using kernels::cuda::CudaStream;
using kernels::cuda::StatusOf;
using kernels::cuda::StreamFailure;

constexpr absl::Duration kWatchEvery = absl::Milliseconds(20);

int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(SizeOf(view.dtype));
}

class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  absl::Status Record(cudaStream_t stream) {
    APB_RETURN_IF_ERROR(StatusOf(cudaEventCreate(&event_), "event"));
    return StatusOf(cudaEventRecord(event_, stream), "event");
  }
  cudaEvent_t get() const { return event_; }
  bool Passed() const { return cudaEventQuery(event_) != cudaErrorNotReady; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Calls and bytes by operation.
using Operations = std::map<std::string, CommunicatorStats::Operation>;

// A collective on its way, or those of a launched graph. Owners: the watchdog's list, and the caller's
// Pending.
struct Collective {
  const char* name;
  int64_t bytes_sent;
  bool recorded = false;  // in a graph: its events are edges there, and never pass
  std::shared_ptr<const Operations> of_graph = nullptr;  // what a launch does; null: one collective
  Event ready, begun, done;  // the caller's data is there; on the communication stream
  std::optional<absl::Time> seen_begun;
  std::shared_ptr<StreamFailure> waiting;  // of the stream that waits for it
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(int rank, int size, absl::Duration deadline)
      : rank_(rank), size_(size), deadline_(deadline) {}
  ~NcclCommunicator() override;
  absl::Status Connect(const std::string& id);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllGather(const TensorView& send, const TensorView& recv,
                         kernels::Stream& stream) override {
    return WaitFor(StartAllGather(send, recv, stream), stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const TensorView& send,
                                                          const TensorView& recv,
                                                          kernels::Stream& stream) override;
  absl::Status AllGatherV(const TensorView& send, const TensorView& recv,
                          std::span<const int64_t> counts, kernels::Stream& stream) override;
  absl::Status AllReduce(const TensorView& data, ReduceOp op, kernels::Stream& stream) override;
  absl::Status ReduceScatter(const TensorView& send, const TensorView& recv,
                             kernels::Stream& stream) override;
  absl::Status AllToAll(const TensorView& send, const TensorView& recv,
                        kernels::Stream& stream) override;
  absl::Status SendRecv(const TensorView& send, int target, const TensorView& recv, int source,
                        kernels::Stream& stream) override {
    return WaitFor(StartSendRecv(send, target, recv, source, stream), stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const TensorView& send, int target,
                                                         const TensorView& recv, int source,
                                                         kernels::Stream& stream) override;
  absl::Status Broadcast(const TensorView& data, int root, kernels::Stream& stream) override;
  absl::Status Barrier() override;
  void Abort(std::string reason) override;
  CommunicatorStats stats() const override;

  bool recordable() const override { return true; }

  // Marks the begin of a graph with collectives of this communicator, or fails the stream.
  std::shared_ptr<Collective> BeginLaunch(CudaStream& stream,
                                          std::shared_ptr<const Operations> operations);
  // Its end: the watchdog looks after it from now on.
  void EndLaunch(std::shared_ptr<Collective> launch, CudaStream& stream);

  // Makes `stream` wait for the collective, and fail if it is given up.
  absl::Status LetWait(const std::shared_ptr<Collective>& collective, CudaStream& stream);

 private:
  using Pendings = absl::StatusOr<std::unique_ptr<Pending>>;

  // Enqueues what `call` does with the communicator and the communication stream.
  Pendings Start(const char* name, int64_t bytes_sent, kernels::Stream& stream,
                 const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call);
  absl::Status WaitFor(Pendings pending, kernels::Stream& stream) {
    APB_RETURN_IF_ERROR(pending.status());
    return (*pending)->Wait(stream);
  }
  // Until NCCL has done what it was asked for: calls return before that.
  absl::Status Settle(ncclResult_t result, const char* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives everything up; the first reason stays.
  absl::Status Break(const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch();
  // Adds what has ended to the counters.
  void Count(const Collective& ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One look at the oldest collectives.
  void LookAfter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int rank_, size_;
  const absl::Duration deadline_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<CudaStream> barrier_stream_;
  float* barrier_word_ = nullptr;
  std::atomic<bool> abort_wanted_{false};

  absl::Mutex abort_mutex_;  // apart: mutex_ is held as long as NCCL takes
  std::string abort_reason_ ABSL_GUARDED_BY(abort_mutex_);
  mutable absl::Mutex mutex_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Collective>> under_way_ ABSL_GUARDED_BY(mutex_);
  Operations operations_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watchdog_;
  std::thread aborting_;  // started once, under mutex_
};

// This communicator's collectives in one graph.
class RecordedCollectives : public kernels::cuda::GraphParticipant {
 public:
  explicit RecordedCollectives(NcclCommunicator& owner) : owner_(owner) {}
  void Add(const std::shared_ptr<Collective>& collective) {
    CommunicatorStats::Operation& operation = (*operations_)[collective->name];
    ++operation.calls;
    operation.bytes_sent += collective->bytes_sent;
    collectives_.push_back(collective);
  }
  void BeforeLaunch(CudaStream& stream) override {
    launch_ = owner_.BeginLaunch(stream, operations_);
  }
  void AfterLaunch(CudaStream& stream) override { owner_.EndLaunch(std::move(launch_), stream); }

 private:
  NcclCommunicator& owner_;
  const std::shared_ptr<Operations> operations_ = std::make_shared<Operations>();
  std::vector<std::shared_ptr<Collective>> collectives_;  // their events live as long as the graph
  std::shared_ptr<Collective> launch_;
};

class NcclPending : public Pending {
 public:
  NcclPending(NcclCommunicator& owner, std::shared_ptr<Collective> collective)
      : owner_(owner), collective_(std::move(collective)) {}
  // The buffers are the collective's until it is done.
  ~NcclPending() override {
    if (!waited_ && !collective_->recorded) cudaEventSynchronize(collective_->done.get());
  }
  absl::Status Wait(kernels::Stream& stream) override {
    waited_ = true;
    return owner_.LetWait(collective_, static_cast<CudaStream&>(stream));
  }

 private:
  NcclCommunicator& owner_;
  const std::shared_ptr<Collective> collective_;
  bool waited_ = false;
};

absl::Status NcclCommunicator::Connect(const std::string& id) {
  APB_RETURN_IF_ERROR(StatusOf(cudaGetDevice(&device_), "nccl: device"));
  int lowest = 0, highest = 0;
  APB_RETURN_IF_ERROR(
      StatusOf(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "nccl: stream"));
  APB_RETURN_IF_ERROR(StatusOf(
      cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "nccl: stream"));
  APB_ASSIGN_OR_RETURN(barrier_stream_, CudaStream::Create());
  void* word = nullptr;
  APB_RETURN_IF_ERROR(StatusOf(cudaMalloc(&word, sizeof(float)), "nccl: barrier"));
  barrier_word_ = static_cast<float*>(word);
  APB_RETURN_IF_ERROR(StatusOf(cudaMemset(word, 0, sizeof(float)), "nccl: barrier"));

  ncclUniqueId unique;
  if (id.size() != sizeof unique) {
    return absl::InvalidArgumentError(
        absl::StrCat("nccl: an id has ", sizeof unique, " bytes, not ", id.size()));
  }
  id.copy(unique.internal, sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  {
    absl::MutexLock lock(&mutex_);
    APB_RETURN_IF_ERROR(Settle(ncclCommInitRankConfig(&comm_, size_, unique, rank_, &config),
                               "meeting of the ranks"));
  }
  watchdog_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

NcclCommunicator::~NcclCommunicator() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (watchdog_.joinable()) watchdog_.join();
  {
    absl::MutexLock lock(&mutex_);
    // Waits for what is under way, within the deadline.
    if (comm_ != nullptr && Settle(ncclCommFinalize(comm_), "end").ok()) ncclCommDestroy(comm_);
  }
  if (aborting_.joinable()) aborting_.join();
  if (barrier_word_ != nullptr) cudaFree(barrier_word_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status NcclCommunicator::Settle(ncclResult_t result, const char* name) {
  const absl::Time start = absl::Now();
  for (int turn = 0; result == ncclInProgress; ++turn) {
    if (comm_ == nullptr || ncclCommGetAsyncError(comm_, &result) != ncclSuccess) {
      return Break(absl::StrCat(name, ": no state"));
    }
    if (result != ncclInProgress) break;
    if (abort_wanted_.load()) {
      absl::MutexLock lock(&abort_mutex_);
      return Break(absl::StrCat(name, ": aborted: ", abort_reason_));
    }
    if (absl::Now() - start > deadline_) {
      return Break(
          absl::StrCat(name, ": not every rank came within ", absl::FormatDuration(deadline_)));
    }
    if (turn < 1000) {
      std::this_thread::yield();
    } else {
      absl::SleepFor(absl::Microseconds(100));
    }
  }
  if (result == ncclSuccess) return absl::OkStatus();
  return Break(absl::StrCat(name, ": ", ncclGetErrorString(result)));
}

absl::Status NcclCommunicator::Break(const std::string& reason) {
  if (!broken_.ok()) return broken_;
  broken_ = absl::UnavailableError(absl::StrCat("nccl, rank ", rank_, ": ", reason));
  APB_LOG(Error, broken_.message());
  // First: whoever sees a stream end must see why.
  for (const auto& collective : under_way_) {
    if (collective->waiting != nullptr) collective->waiting->Set(broken_);
  }
  under_way_.clear();
  // Apart, as it waits until graphs with collectives of this communicator have ended.
  if (comm_ != nullptr) {
    aborting_ = std::thread([comm = std::exchange(comm_, nullptr), device = device_] {
      cudaSetDevice(device);
      ncclCommAbort(comm);
    });
  }
  return broken_;
}

NcclCommunicator::Pendings NcclCommunicator::Start(
    const char* name, int64_t bytes_sent, kernels::Stream& stream,
    const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call) {
  absl::MutexLock lock(&mutex_);
  if (!broken_.ok())
    return absl::UnavailableError(absl::StrCat(name, ": broken before: ", broken_.message()));
  auto collective = std::make_shared<Collective>();
  collective->name = name;
  collective->bytes_sent = bytes_sent;
  auto& of_caller = static_cast<CudaStream&>(stream);
  collective->recorded = of_caller.recording();
  if (collective->recorded) {
    auto& part = of_caller.participants()[this];
    if (part == nullptr) part = std::make_shared<RecordedCollectives>(*this);
    static_cast<RecordedCollectives&>(*part).Add(collective);
  }
  // Where the caller's stream records, this makes the communication stream a branch of the graph, and
  // the caller's wait joins them again.
  APB_RETURN_IF_ERROR(collective->ready.Record(of_caller.handle()));
  APB_RETURN_IF_ERROR(StatusOf(cudaStreamWaitEvent(stream_, collective->ready.get(), 0), name));
  if (!collective->recorded) APB_RETURN_IF_ERROR(collective->begun.Record(stream_));
  APB_RETURN_IF_ERROR(Settle(call(comm_, stream_), name));
  APB_RETURN_IF_ERROR(collective->done.Record(stream_));
  if (!collective->recorded) under_way_.push_back(collective);
  return std::make_unique<NcclPending>(*this, std::move(collective));
}

absl::Status NcclCommunicator::LetWait(const std::shared_ptr<Collective>& collective,
                                       CudaStream& stream) {
  absl::MutexLock lock(&mutex_);
  APB_RETURN_IF_ERROR(broken_);
  if (!collective->recorded) collective->waiting = stream.outside_failure();
  return StatusOf(cudaStreamWaitEvent(stream.handle(), collective->done.get(), 0),
                  collective->name);
}

std::shared_ptr<Collective> NcclCommunicator::BeginLaunch(
    CudaStream& stream, std::shared_ptr<const Operations> operations) {
  absl::MutexLock lock(&mutex_);
  auto launch = std::make_shared<Collective>();
  launch->name = "collectives of a graph";
  launch->of_graph = std::move(operations);
  launch->waiting = stream.outside_failure();
  stream.Fail(broken_);
  stream.Fail(launch->begun.Record(stream.handle()));
  return launch;
}

void NcclCommunicator::EndLaunch(std::shared_ptr<Collective> launch, CudaStream& stream) {
  absl::MutexLock lock(&mutex_);
  stream.Fail(broken_);  // meanwhile
  stream.Fail(launch->done.Record(stream.handle()));
  if (broken_.ok()) under_way_.push_back(std::move(launch));
}

void NcclCommunicator::Watch() {
  cudaSetDevice(device_);
  const auto something = [this] {
    mutex_.AssertReaderHeld();
    return stopping_ || !under_way_.empty() || abort_wanted_.load();
  };
  absl::MutexLock lock(&mutex_);
  while (true) {
    // An abort may be wanted while nothing is under way; nobody signals that.
    mutex_.AwaitWithTimeout(absl::Condition(&something), absl::Seconds(1));
    if (stopping_ || !broken_.ok()) return;
    LookAfter();
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kWatchEvery);
  }
}

void NcclCommunicator::Count(const Collective& ended) {
  const auto add = [this](const std::string& name, int64_t calls, int64_t bytes, double seconds) {
    mutex_.AssertHeld();
    CommunicatorStats::Operation& operation = operations_[name];
    operation.name = name;
    operation.calls += calls;
    operation.bytes_sent += bytes;
    operation.seconds += seconds;
  };
  if (ended.of_graph != nullptr) {
    for (const auto& [name, operation] : *ended.of_graph)
      add(name, operation.calls, operation.bytes_sent, 0);
    return;
  }
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, ended.begun.get(), ended.done.get());
  add(ended.name, 1, ended.bytes_sent, milliseconds / 1000.0);
}

void NcclCommunicator::LookAfter() {
  while (!under_way_.empty() && under_way_.front()->done.Passed()) {
    Count(*under_way_.front());
    under_way_.pop_front();
  }
  ncclResult_t state = ncclSuccess;
  if (abort_wanted_.load()) {
    absl::MutexLock lock(&abort_mutex_);
    Break(absl::StrCat("aborted: ", abort_reason_)).IgnoreError();
  } else if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess ||
             (state != ncclSuccess && state != ncclInProgress)) {
    Break(absl::StrCat("a peer or a link failed: ", ncclGetErrorString(state))).IgnoreError();
  } else if (!under_way_.empty()) {
    // Time counts from when the collective itself runs, not the work in front of it.
    Collective& oldest = *under_way_.front();
    if (!oldest.seen_begun.has_value()) {
      if (oldest.begun.Passed()) oldest.seen_begun = absl::Now();
    } else if (absl::Now() - *oldest.seen_begun > deadline_) {
      Break(absl::StrCat(oldest.name, ": a rank did not answer within ",
                         absl::FormatDuration(deadline_)))
          .IgnoreError();
    }
  }
}

NcclCommunicator::Pendings NcclCommunicator::StartAllGather(const TensorView& send,
                                                            const TensorView& recv,
                                                            kernels::Stream& stream) {
  if (Bytes(recv) != Bytes(send) * size_)
    return absl::InternalError("all_gather: recv must be size() times send");
  return Start("all_gather", Bytes(send) * (size_ - 1), stream, [&](ncclComm_t c, cudaStream_t s) {
    return ncclAllGather(send.data, recv.data, Bytes(send), ncclInt8, c, s);
  });
}

absl::Status NcclCommunicator::AllGatherV(const TensorView& send, const TensorView& recv,
                                          std::span<const int64_t> counts,
                                          kernels::Stream& stream) {
  int64_t rows = 0;
  for (const int64_t count : counts) rows += count;
  if (static_cast<int>(counts.size()) != size_ || rows != recv.rows() ||
      counts[rank_] != send.rows()) {
    return absl::InvalidArgumentError("all_gather_v: counts do not match the views");
  }
  const int64_t row_bytes = rows == 0 ? 0 : Bytes(recv) / rows;
  return WaitFor(Start("all_gather_v", Bytes(send) * (size_ - 1), stream,
                       [&](ncclComm_t c, cudaStream_t s) {
                         ncclGroupStart();
                         std::byte* to = recv.as<std::byte>();
                         for (int r = 0; r < size_; ++r) {
                           const int64_t bytes = counts[r] * row_bytes;
                           ncclBroadcast(r == rank_ ? send.data : to, to, bytes, ncclInt8, r, c, s);
                           to += bytes;
                         }
                         return ncclGroupEnd();
                       }),
                 stream);
}

absl::Status NcclCommunicator::AllReduce(const TensorView& data, ReduceOp op,
                                         kernels::Stream& stream) {
  return WaitFor(Start("all_reduce", Bytes(data), stream,
                       [&](ncclComm_t c, cudaStream_t s) {
                         return ncclAllReduce(data.data, data.data, data.numel(), ncclFloat,
                                              op == ReduceOp::kSum ? ncclSum : ncclMax, c, s);
                       }),
                 stream);
}

absl::Status NcclCommunicator::ReduceScatter(const TensorView& send, const TensorView& recv,
                                             kernels::Stream& stream) {
  if (send.numel() != recv.numel() * size_)
    return absl::InvalidArgumentError("reduce_scatter: send must be size() times recv");
  return WaitFor(Start("reduce_scatter", Bytes(send) - Bytes(recv), stream,
                       [&](ncclComm_t c, cudaStream_t s) {
                         return ncclReduceScatter(send.data, recv.data, recv.numel(), ncclFloat,
                                                  ncclSum, c, s);
                       }),
                 stream);
}

absl::Status NcclCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                        kernels::Stream& stream) {
  if (Bytes(send) != Bytes(recv) || Bytes(send) % size_ != 0)
    return absl::InvalidArgumentError("all_to_all: size() equal parts wanted");
  const int64_t part = Bytes(send) / size_;
  return WaitFor(Start("all_to_all", part * (size_ - 1), stream,
                       [&](ncclComm_t c, cudaStream_t s) {
                         ncclGroupStart();
                         for (int r = 0; r < size_; ++r) {
                           ncclSend(send.as<std::byte>() + r * part, part, ncclInt8, r, c, s);
                           ncclRecv(recv.as<std::byte>() + r * part, part, ncclInt8, r, c, s);
                         }
                         return ncclGroupEnd();
                       }),
                 stream);
}

NcclCommunicator::Pendings NcclCommunicator::StartSendRecv(const TensorView& send, int target,
                                                           const TensorView& recv, int source,
                                                           kernels::Stream& stream) {
  return Start("send_recv", Bytes(send), stream, [&](ncclComm_t c, cudaStream_t s) {
    ncclGroupStart();
    ncclSend(send.data, Bytes(send), ncclInt8, target, c, s);
    ncclRecv(recv.data, Bytes(recv), ncclInt8, source, c, s);
    return ncclGroupEnd();
  });
}

absl::Status NcclCommunicator::Broadcast(const TensorView& data, int root,
                                         kernels::Stream& stream) {
  return WaitFor(Start("broadcast", rank_ == root ? Bytes(data) * (size_ - 1) : 0, stream,
                       [&](ncclComm_t c, cudaStream_t s) {
                         return ncclBroadcast(data.data, data.data, Bytes(data), ncclInt8, root, c,
                                              s);
                       }),
                 stream);
}

absl::Status NcclCommunicator::Barrier() {
  APB_RETURN_IF_ERROR(WaitFor(Start("barrier", 0, *barrier_stream_,
                                    [&](ncclComm_t c, cudaStream_t s) {
                                      return ncclAllReduce(barrier_word_, barrier_word_, 1,
                                                           ncclFloat, ncclSum, c, s);
                                    }),
                              *barrier_stream_));
  return barrier_stream_->Synchronize();
}

void NcclCommunicator::Abort(std::string reason) {
  absl::MutexLock lock(&abort_mutex_);
  if (abort_wanted_.load()) return;
  abort_reason_ = std::move(reason);
  abort_wanted_.store(true);
}

CommunicatorStats NcclCommunicator::stats() const {
  absl::MutexLock lock(&mutex_);
  CommunicatorStats stats;
  for (const auto& [name, operation] : operations_) stats.operations.push_back(operation);
  return stats;
}

}  // namespace

absl::StatusOr<std::string> NewNcclId() {
  ncclUniqueId id;
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess)
    return absl::UnavailableError(absl::StrCat("nccl: no id: ", ncclGetErrorString(result)));
  return std::string(id.internal, sizeof id);
}

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options) {
  auto communicator =
      std::make_unique<NcclCommunicator>(options.rank, options.size, options.deadline);
  APB_RETURN_IF_ERROR(communicator->Connect(options.id));
  return std::unique_ptr<Communicator>(std::move(communicator));
}

}  // namespace apb::parallel
