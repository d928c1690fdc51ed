#include "tests/bench/one_device_communicator.h"

#include <algorithm>
#include <ctime>
#include <functional>

#include "engine/base/status_macros.h"

namespace apb::bench {

using comm::Pending;
using kernels::Stream;
using kernels::TensorView;

namespace {

double ThreadCpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(kernels::SizeOf(view.dtype));
}

double Last(const std::vector<double>& begun) {
  return *std::max_element(begun.begin(), begun.end());
}

}  // namespace

void Rehearsal::Begin(uint64_t number, int rank, double clock) {
  absl::MutexLock lock(&mutex_);
  if (begun_.size() <= number) begun_.resize(number + 1, std::vector<double>(ranks_));
  begun_[number][rank] = clock;
}

std::vector<double> Rehearsal::Begun(uint64_t number) const {
  absl::MutexLock lock(&mutex_);
  return begun_[number];
}

OneDeviceCommunicator::OneDeviceCommunicator(comm::Communicator& inner, Rehearsal& rehearsal)
    : inner_(inner), rehearsal_(rehearsal) {
  rehearsal_.TakeTurn();
  counted_ = ThreadCpuSeconds();
}

OneDeviceCommunicator::~OneDeviceCommunicator() { rehearsal_.GiveTurn(); }

void OneDeviceCommunicator::Settle() {
  const double now = ThreadCpuSeconds();
  compute_seconds_ += now - counted_;
  clock_ += now - counted_;
  counted_ = now;
}

void OneDeviceCommunicator::Reset() {
  compute_seconds_ = clock_ = 0;
  counted_ = ThreadCpuSeconds();
}

uint64_t OneDeviceCommunicator::BeginOperation() {
  Settle();
  rehearsal_.Begin(next_, rank(), clock_);
  return next_++;
}

template <typename Wait, typename Arrival>
absl::Status OneDeviceCommunicator::WaitWithoutTurn(Wait wait, Arrival arrival) {
  Settle();
  rehearsal_.GiveTurn();
  const absl::Status status = wait();
  // By now all ranks whose messages this one waited for have begun the operation.
  if (status.ok()) clock_ = std::max(clock_, arrival());
  rehearsal_.TakeTurn();
  counted_ = ThreadCpuSeconds();
  return status;
}

template <typename Call>
absl::Status OneDeviceCommunicator::Collective(double seconds, Call call) {
  const uint64_t number = BeginOperation();
  return WaitWithoutTurn(call, [&] { return Last(rehearsal_.Begun(number)) + seconds; });
}

class OneDeviceCommunicator::OneDevicePending : public Pending {
 public:
  OneDevicePending(OneDeviceCommunicator& owner, std::unique_ptr<Pending> inner,
                   std::function<double()> arrival)
      : owner_(owner), inner_(std::move(inner)), arrival_(std::move(arrival)) {}
  absl::Status Wait(Stream& stream) override {
    return owner_.WaitWithoutTurn([&] { return inner_->Wait(stream); }, arrival_);
  }

 private:
  OneDeviceCommunicator& owner_;
  const std::unique_ptr<Pending> inner_;
  const std::function<double()> arrival_;
};

absl::StatusOr<std::unique_ptr<Pending>> OneDeviceCommunicator::StartAllGather(
    const TensorView& send, const TensorView& recv, Stream& stream) {
  const uint64_t number = BeginOperation();
  APB_ASSIGN_OR_RETURN(auto pending, inner_.StartAllGather(send, recv, stream));
  const double seconds = ToAll(Bytes(send));
  return std::make_unique<OneDevicePending>(*this, std::move(pending), [this, number, seconds] {
    return Last(rehearsal_.Begun(number)) + seconds;
  });
}

absl::StatusOr<std::unique_ptr<Pending>> OneDeviceCommunicator::StartSendRecv(
    const TensorView& send, int target, const TensorView& recv, int source, Stream& stream) {
  const uint64_t number = BeginOperation();
  APB_ASSIGN_OR_RETURN(auto pending, inner_.StartSendRecv(send, target, recv, source, stream));
  const double out = rehearsal_.MessageSeconds(Bytes(send)),
               in = rehearsal_.MessageSeconds(Bytes(recv));
  return std::make_unique<OneDevicePending>(
      *this, std::move(pending), [this, number, target, source, out, in] {
        const std::vector<double> begun = rehearsal_.Begun(number);
        return std::max(std::max(begun[rank()], begun[target]) + out,
                        std::max(begun[rank()], begun[source]) + in);
      });
}

absl::Status OneDeviceCommunicator::AllGather(const TensorView& send, const TensorView& recv,
                                              Stream& stream) {
  APB_ASSIGN_OR_RETURN(auto pending, StartAllGather(send, recv, stream));
  return pending->Wait(stream);
}

absl::Status OneDeviceCommunicator::SendRecv(const TensorView& send, int target,
                                             const TensorView& recv, int source, Stream& stream) {
  APB_ASSIGN_OR_RETURN(auto pending, StartSendRecv(send, target, recv, source, stream));
  return pending->Wait(stream);
}

absl::Status OneDeviceCommunicator::AllGatherV(const TensorView& send, const TensorView& recv,
                                               std::span<const int64_t> counts, Stream& stream) {
  return Collective(ToAll(Bytes(recv) / size()),
                    [&] { return inner_.AllGatherV(send, recv, counts, stream); });
}

absl::Status OneDeviceCommunicator::AllReduce(const TensorView& data, comm::ReduceOp op,
                                              Stream& stream) {
  return Collective(2 * ToAll(Bytes(data) / size()),
                    [&] { return inner_.AllReduce(data, op, stream); });
}

absl::Status OneDeviceCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                             Stream& stream) {
  return Collective(ToAll(Bytes(send) / size()),
                    [&] { return inner_.AllToAll(send, recv, stream); });
}

absl::Status OneDeviceCommunicator::Broadcast(const TensorView& data, int root, Stream& stream) {
  return Collective(ToAll(Bytes(data)), [&] { return inner_.Broadcast(data, root, stream); });
}

absl::Status OneDeviceCommunicator::Barrier() {
  return Collective(0, [&] { return inner_.Barrier(); });
}

}  // namespace apb::bench
