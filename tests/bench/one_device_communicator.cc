#include "tests/bench/one_device_communicator.h"

#include <algorithm>
#include <ctime>

#include "engine/base/status_macros.h"

namespace apb::bench {

using comm::BytesOf;
using comm::Collective;
using comm::Pending;
using kernels::Stream;

namespace {

double ThreadCpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
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
    : CommunicatorDecorator(inner), rehearsal_(rehearsal) {
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

double OneDeviceCommunicator::ArrivalOf(uint64_t number, const Collective& c) const {
  const std::vector<double> begun = rehearsal_.Begun(number);
  switch (c.kind) {
    case Collective::Kind::kAllGather:
      return Last(begun) + ToAll(BytesOf(c.send));
    case Collective::Kind::kAllGatherV:
    case Collective::Kind::kAllToAll:
      return Last(begun) + ToAll(BytesOf(c.recv) / size());
    case Collective::Kind::kAllReduce:
      return Last(begun) + 2 * ToAll(BytesOf(c.recv) / size());
    case Collective::Kind::kBroadcast:
      return Last(begun) + ToAll(BytesOf(c.recv));
    case Collective::Kind::kSendRecv:
      break;
  }
  const double mine = begun[rank()];
  return std::max(std::max(mine, begun[c.target]) + rehearsal_.MessageSeconds(BytesOf(c.send)),
                  std::max(mine, begun[c.source]) + rehearsal_.MessageSeconds(BytesOf(c.recv)));
}

class OneDeviceCommunicator::OneDevicePending : public Pending {
 public:
  OneDevicePending(OneDeviceCommunicator& owner, uint64_t number, const Collective& collective,
                   std::unique_ptr<Pending> inner)
      : owner_(owner), number_(number), collective_(collective), inner_(std::move(inner)) {}
  absl::Status Wait(Stream& stream) override {
    return owner_.WaitWithoutTurn([&] { return inner_->Wait(stream); },
                                  [&] { return owner_.ArrivalOf(number_, collective_); });
  }

 private:
  OneDeviceCommunicator& owner_;
  const uint64_t number_;
  const Collective collective_;
  const std::unique_ptr<Pending> inner_;
};

absl::StatusOr<std::unique_ptr<Pending>> OneDeviceCommunicator::DoStart(const Collective& c,
                                                                        Stream& stream) {
  const uint64_t number = BeginOperation();
  APB_ASSIGN_OR_RETURN(auto pending, inner().Start(c, stream));
  return std::make_unique<OneDevicePending>(*this, number, c, std::move(pending));
}

absl::Status OneDeviceCommunicator::Barrier() {
  const uint64_t number = BeginOperation();
  return WaitWithoutTurn([&] { return inner().Barrier(); },
                         [&] { return Last(rehearsal_.Begun(number)); });
}

}  // namespace apb::bench
