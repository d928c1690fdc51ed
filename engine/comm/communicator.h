// Collectives between the ranks of a group. All ranks make the same calls in the same order. A lost
// peer, or an operation that outlives the deadline, breaks the communicator for good: every later
// call returns kUnavailable and names the operation. One thread (the step thread) makes the calls;
// any thread may call Abort.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/backend.h"

namespace apb::comm {

enum class ReduceOp { kSum, kMax };

// Bytes of a contiguous view.
inline int64_t BytesOf(const kernels::TensorView& view) {
  return kernels::BytesOf(view.dtype, view.numel());
}

// A collective in flight. Its buffers must live, unchanged, until Wait returns.
class Pending {
 public:
  virtual ~Pending() = default;
  // Makes `stream` wait for the result: on a device by an event, on a CPU by blocking.
  virtual absl::Status Wait(kernels::Stream& stream) = 0;
};

// Counters since the start, by operation name. The step thread reads them.
struct CommunicatorStats {
  struct Operation {
    std::string name;  // all_gather, ...
    int64_t calls = 0;
    int64_t bytes_sent = 0;  // payload that left this rank
    double seconds = 0;      // time that the step thread waited
  };
  std::vector<Operation> operations;
};

// One call of a collective, as a value. Communicators and decorators handle all operations in one
// function that takes it. Views must be contiguous.
struct Collective {
  enum class Kind { kAllGather, kAllGatherV, kAllReduce, kAllToAll, kSendRecv, kBroadcast };
  Kind kind = Kind::kAllGather;
  kernels::TensorView send;  // absent if in place: all_reduce, broadcast
  kernels::TensorView recv;  // in place: the data
  // all_gather_v: rows by rank. The values must live until Start returns.
  std::span<const int64_t> counts = {};
  ReduceOp op = ReduceOp::kSum;  // all_reduce
  int target = -1;               // send_recv
  int source = -1;               // send_recv; broadcast: the root

  const char* name() const;  // all_gather, ...
  // Payload that leaves `rank` of `size` ranks.
  int64_t BytesSent(int rank, int size) const;
  // kInvalidArgument if views, counts and ranks do not fit together on `rank` of `size` ranks.
  absl::Status Check(int rank, int size) const;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts a collective and returns: what is computed before Wait overlaps with it.
  absl::StatusOr<std::unique_ptr<Pending>> Start(const Collective& collective,
                                                 kernels::Stream& stream);
  // Starts a collective and waits for it.
  absl::Status Run(const Collective& collective, kernels::Stream& stream);

  // The same in short. recv holds `size()` parts of send's shape, in rank order.
  absl::Status AllGather(const kernels::TensorView& send, const kernels::TensorView& recv,
                         kernels::Stream& stream) {
    return Run({.kind = Collective::Kind::kAllGather, .send = send, .recv = recv}, stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const kernels::TensorView& send,
                                                          const kernels::TensorView& recv,
                                                          kernels::Stream& stream) {
    return Start({.kind = Collective::Kind::kAllGather, .send = send, .recv = recv}, stream);
  }
  // Rank r contributes counts[r] rows (first dimension). recv holds all rows, in rank order.
  absl::Status AllGatherV(const kernels::TensorView& send, const kernels::TensorView& recv,
                          std::span<const int64_t> counts, kernels::Stream& stream) {
    return Run(
        {.kind = Collective::Kind::kAllGatherV, .send = send, .recv = recv, .counts = counts},
        stream);
  }
  // In place, f32.
  absl::Status AllReduce(const kernels::TensorView& data, ReduceOp op, kernels::Stream& stream) {
    return Run({.kind = Collective::Kind::kAllReduce, .recv = data, .op = op}, stream);
  }
  // Part r of send goes to rank r; part r of recv comes from rank r. Equal parts.
  absl::Status AllToAll(const kernels::TensorView& send, const kernels::TensorView& recv,
                        kernels::Stream& stream) {
    return Run({.kind = Collective::Kind::kAllToAll, .send = send, .recv = recv}, stream);
  }
  // Sends to `target` and receives from `source` at the same time (a ring step).
  absl::Status SendRecv(const kernels::TensorView& send, int target,
                        const kernels::TensorView& recv, int source, kernels::Stream& stream) {
    return Run(RingStep(send, target, recv, source), stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const kernels::TensorView& send,
                                                         int target,
                                                         const kernels::TensorView& recv,
                                                         int source, kernels::Stream& stream) {
    return Start(RingStep(send, target, recv, source), stream);
  }
  absl::Status Broadcast(const kernels::TensorView& data, int root, kernels::Stream& stream) {
    return Run({.kind = Collective::Kind::kBroadcast, .recv = data, .source = root}, stream);
  }
  virtual absl::Status Barrier() = 0;

  // Whether a collective that is called while the stream records (kernels::Backend::Record) becomes
  // part of the recording. If so, all ranks record and launch together. If not, the CPU runs the
  // collective at the time of the call.
  virtual bool recordable() const = 0;
  // Breaks the communicator; wakes a blocked call. Thread-safe.
  virtual void Abort(std::string reason) = 0;
  virtual CommunicatorStats stats() const = 0;

 private:
  // Start, for a collective that has passed its Check.
  virtual absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& collective,
                                                           kernels::Stream& stream) = 0;
  static Collective RingStep(const kernels::TensorView& send, int target,
                             const kernels::TensorView& recv, int source) {
    return {.kind = Collective::Kind::kSendRecv,
            .send = send,
            .recv = recv,
            .target = target,
            .source = source};
  }
};

}  // namespace apb::comm
