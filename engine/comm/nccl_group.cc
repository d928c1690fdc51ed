#include "engine/comm/nccl_group.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace apb::comm {

using kernels::cuda::CudaStream;
using kernels::cuda::StatusOf;
using kernels::cuda::StreamFailure;

namespace {

constexpr absl::Duration kWatchEvery = absl::Milliseconds(20);

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

}  // namespace

// A collective in flight, or all collectives of a launched graph. The watchdog's list and the
// caller's Pending (or the graph) own it together.
struct NcclCollective {
  const char* name;
  int64_t bytes_sent;
  bool recorded = false;  // in a graph: its events are edges of the graph, and never pass
  // The calls and bytes of a launched graph. Null for a single collective.
  std::shared_ptr<const NcclGroup::Operations> of_graph = nullptr;
  // `ready` is on the caller's stream (the data to send is written), the others on the
  // communication stream.
  Event ready, begun, done;
  std::optional<absl::Time> seen_begun;
  std::shared_ptr<StreamFailure> waiting;  // failure of the stream that waits for it
};

namespace {

// Adds a collective or launch that has ended to the counters.
void Count(const NcclCollective& ended, NcclGroup::Operations& operations) {
  const auto add = [&](const std::string& name, int64_t calls, int64_t bytes, double seconds) {
    CommunicatorStats::Operation& operation = operations[name];
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

// This group's collectives in one graph.
class RecordedCollectives : public kernels::cuda::GraphParticipant {
 public:
  explicit RecordedCollectives(NcclGroup& owner) : owner_(owner) {}
  void Add(const std::shared_ptr<NcclCollective>& collective) {
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
  NcclGroup& owner_;
  const std::shared_ptr<NcclGroup::Operations> operations_ =
      std::make_shared<NcclGroup::Operations>();
  // Kept, because the graph needs their events as long as it lives.
  std::vector<std::shared_ptr<NcclCollective>> collectives_;
  std::shared_ptr<NcclCollective> launch_;
};

class NcclPending : public Pending {
 public:
  NcclPending(NcclGroup& owner, std::shared_ptr<NcclCollective> collective)
      : owner_(owner), collective_(std::move(collective)) {}
  // Without a Wait, the collective may still use its buffers: the destructor waits for its end.
  ~NcclPending() override {
    if (!waited_ && !collective_->recorded) cudaEventSynchronize(collective_->done.get());
  }
  absl::Status Wait(kernels::Stream& stream) override {
    waited_ = true;
    return owner_.LetWait(collective_, static_cast<CudaStream&>(stream));
  }

 private:
  NcclGroup& owner_;
  const std::shared_ptr<NcclCollective> collective_;
  bool waited_ = false;
};

}  // namespace

absl::Status NcclGroup::Connect(const std::string& id) {
  APB_RETURN_IF_ERROR(StatusOf(cudaGetDevice(&device_), "nccl: device"));
  int lowest = 0, highest = 0;
  APB_RETURN_IF_ERROR(
      StatusOf(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "nccl: stream"));
  APB_RETURN_IF_ERROR(StatusOf(
      cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "nccl: stream"));

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

NcclGroup::~NcclGroup() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (watchdog_.joinable()) watchdog_.join();
  {
    absl::MutexLock lock(&mutex_);
    // Waits, within the deadline, for the collectives in flight.
    if (comm_ != nullptr && Settle(ncclCommFinalize(comm_), "end").ok()) ncclCommDestroy(comm_);
  }
  if (aborting_.joinable()) aborting_.join();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status NcclGroup::Settle(ncclResult_t result, const char* name) {
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
  // NCCL's own text names the rank and the device.
  return Break(absl::StrCat(name, ": ", ncclGetErrorString(result), ": ", ncclGetLastError(comm_)));
}

absl::Status NcclGroup::Break(const std::string& reason) {
  if (!broken_.ok()) return broken_;
  broken_ = absl::UnavailableError(absl::StrCat("nccl, rank ", rank_, ": ", reason));
  APB_LOG(Error, broken_.message());
  // Before the abort, so that a stream that it ends already carries the reason.
  for (const auto& collective : under_way_) {
    if (collective->waiting != nullptr) collective->waiting->Set(broken_);
  }
  under_way_.clear();
  // In a thread of its own, because the abort waits until graphs with collectives of this
  // communicator have ended.
  if (comm_ != nullptr) {
    aborting_ = std::thread([comm = std::exchange(comm_, nullptr), device = device_] {
      cudaSetDevice(device);
      ncclCommAbort(comm);
    });
  }
  return broken_;
}

absl::StatusOr<std::unique_ptr<Pending>> NcclGroup::Start(
    const char* name, int64_t bytes_sent, kernels::Stream& stream,
    const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call) {
  absl::MutexLock lock(&mutex_);
  if (!broken_.ok())
    return absl::UnavailableError(absl::StrCat(name, ": broken before: ", broken_.message()));
  auto collective = std::make_shared<NcclCollective>();
  collective->name = name;
  collective->bytes_sent = bytes_sent;
  auto& of_caller = static_cast<CudaStream&>(stream);
  collective->recorded = of_caller.recording();
  if (collective->recorded) {
    auto& part = of_caller.participants()[this];
    if (part == nullptr) part = std::make_shared<RecordedCollectives>(*this);
    static_cast<RecordedCollectives&>(*part).Add(collective);
  }
  // If the caller's stream records, this event makes the communication stream a branch of the
  // graph, and the caller's Wait joins the two streams again.
  APB_RETURN_IF_ERROR(collective->ready.Record(of_caller.handle()));
  APB_RETURN_IF_ERROR(StatusOf(cudaStreamWaitEvent(stream_, collective->ready.get(), 0), name));
  if (!collective->recorded) APB_RETURN_IF_ERROR(collective->begun.Record(stream_));
  APB_RETURN_IF_ERROR(Settle(call(comm_, stream_), name));
  APB_RETURN_IF_ERROR(collective->done.Record(stream_));
  if (!collective->recorded) under_way_.push_back(collective);
  return std::make_unique<NcclPending>(*this, std::move(collective));
}

absl::Status NcclGroup::LetWait(const std::shared_ptr<NcclCollective>& collective,
                                CudaStream& stream) {
  absl::MutexLock lock(&mutex_);
  APB_RETURN_IF_ERROR(broken_);
  if (!collective->recorded) collective->waiting = stream.outside_failure();
  return StatusOf(cudaStreamWaitEvent(stream.handle(), collective->done.get(), 0),
                  collective->name);
}

std::shared_ptr<NcclCollective> NcclGroup::BeginLaunch(
    CudaStream& stream, std::shared_ptr<const Operations> operations) {
  absl::MutexLock lock(&mutex_);
  auto launch = std::make_shared<NcclCollective>();
  launch->name = "collectives of a graph";
  launch->of_graph = std::move(operations);
  launch->waiting = stream.outside_failure();
  stream.Fail(broken_);
  stream.Fail(launch->begun.Record(stream.handle()));
  return launch;
}

void NcclGroup::EndLaunch(std::shared_ptr<NcclCollective> launch, CudaStream& stream) {
  absl::MutexLock lock(&mutex_);
  stream.Fail(broken_);  // it may have broken since BeginLaunch
  stream.Fail(launch->done.Record(stream.handle()));
  if (broken_.ok()) under_way_.push_back(std::move(launch));
}

void NcclGroup::Watch() {
  cudaSetDevice(device_);
  const auto something = [this] {
    mutex_.AssertReaderHeld();
    return stopping_ || !under_way_.empty() || abort_wanted_.load();
  };
  absl::MutexLock lock(&mutex_);
  while (true) {
    // The timeout is for an Abort while nothing is in flight: no signal tells of it.
    mutex_.AwaitWithTimeout(absl::Condition(&something), absl::Seconds(1));
    if (stopping_ || !broken_.ok()) return;
    LookAfter();
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kWatchEvery);
  }
}

void NcclGroup::LookAfter() {
  while (!under_way_.empty() && under_way_.front()->done.Passed()) {
    Count(*under_way_.front(), operations_);
    under_way_.pop_front();
  }
  ncclResult_t state = ncclSuccess;
  if (abort_wanted_.load()) {
    absl::MutexLock lock(&abort_mutex_);
    Break(absl::StrCat("aborted: ", abort_reason_)).IgnoreError();
  } else if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess ||
             (state != ncclSuccess && state != ncclInProgress)) {
    Break(absl::StrCat("a peer or a link failed: ", ncclGetErrorString(state), ": ",
                       ncclGetLastError(comm_)))
        .IgnoreError();
  } else if (!under_way_.empty()) {
    // The deadline counts from the begin of the collective itself, not of the work before it.
    NcclCollective& oldest = *under_way_.front();
    if (!oldest.seen_begun.has_value()) {
      if (oldest.begun.Passed()) oldest.seen_begun = absl::Now();
    } else if (absl::Now() - *oldest.seen_begun > deadline_) {
      Break(absl::StrCat(oldest.name, ": a rank did not answer within ",
                         absl::FormatDuration(deadline_)))
          .IgnoreError();
    }
  }
}

void NcclGroup::Abort(std::string reason) {
  absl::MutexLock lock(&abort_mutex_);
  if (abort_wanted_.load()) return;
  abort_reason_ = std::move(reason);
  abort_wanted_.store(true);
}

CommunicatorStats NcclGroup::stats() const {
  absl::MutexLock lock(&mutex_);
  Operations operations = operations_;
  // The watchdog has not seen yet that these have ended.
  for (const auto& collective : under_way_) {
    if (collective->done.Passed()) Count(*collective, operations);
  }
  CommunicatorStats stats;
  for (const auto& [name, operation] : operations) stats.operations.push_back(operation);
  return stats;
}

}  // namespace apb::comm
