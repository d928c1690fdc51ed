// Times ranks, which are threads of one machine, as if each had a device of its own. A rank
// computes only while it has the turn, and gives the turn up while it waits in a collective; so its
// compute time is measured alone. The time of the links is modelled (LinkModel). Every rank has a
// clock that advances with its compute. A collective ends for a rank when the other ranks have
// begun it and the messages have arrived.
#pragma once

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/engine/comm/communicator_decorator.h"

namespace apb::bench {

// A message of b bytes takes latency + b / bytes_per_second and has the link to itself. A
// collective sends one message to each other rank, one after the other.
struct LinkModel {
  double latency_seconds = 20e-6;
  double bytes_per_second = 5e9;
};

// The state that the ranks of one group share: the turn, and the clocks at which each operation
// began. Thread-safe.
class Rehearsal {
 public:
  Rehearsal(int ranks, LinkModel links) : ranks_(ranks), links_(links) {}

  void TakeTurn() ABSL_EXCLUSIVE_LOCK_FUNCTION(turn_) { turn_.Lock(); }
  void GiveTurn() ABSL_UNLOCK_FUNCTION(turn_) { turn_.Unlock(); }
  double MessageSeconds(int64_t bytes) const {
    return links_.latency_seconds + static_cast<double>(bytes) / links_.bytes_per_second;
  }
  // Rank `rank` begins operation `number` at time `clock`.
  void Begin(uint64_t number, int rank, double clock);
  // By rank, the times at which operation `number` began.
  std::vector<double> Begun(uint64_t number) const;

 private:
  const int ranks_;
  const LinkModel links_;
  absl::Mutex turn_;
  mutable absl::Mutex mutex_;
  std::vector<std::vector<double>> begun_ ABSL_GUARDED_BY(mutex_);  // by operation, by rank
};

// One rank's communicator. Only the thread that made it may use it. Compute is that thread's CPU
// seconds, so the backend must have one thread.
class OneDeviceCommunicator : public comm::CommunicatorDecorator {
 public:
  // Waits for the turn. The references must outlive the communicator.
  OneDeviceCommunicator(comm::Communicator& inner, Rehearsal& rehearsal);
  ~OneDeviceCommunicator() override;

  double compute_seconds() const { return compute_seconds_; }  // up to the last collective
  double clock() const { return clock_; }                      // the same, waiting included
  // Counts the compute since the last collective.
  void Settle();
  // Sets clock and compute to zero.
  void Reset();

  absl::Status Barrier() override;

 private:
  class OneDevicePending;
  absl::StatusOr<std::unique_ptr<comm::Pending>> DoStart(const comm::Collective& collective,
                                                         kernels::Stream& stream) override;
  // Calls wait() without the turn. Afterwards the clock is at least arrival().
  template <typename Wait, typename Arrival>
  absl::Status WaitWithoutTurn(Wait wait, Arrival arrival);
  uint64_t BeginOperation();
  // The time at which the messages of operation `number`, which its ranks have begun, arrive.
  double ArrivalOf(uint64_t number, const comm::Collective& collective) const;
  double ToAll(int64_t bytes) const { return (size() - 1) * rehearsal_.MessageSeconds(bytes); }

  Rehearsal& rehearsal_;
  double compute_seconds_ = 0, clock_ = 0, counted_ = 0;  // counted_: CPU seconds of the thread
  uint64_t next_ = 0;
};

}  // namespace apb::bench
