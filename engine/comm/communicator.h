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

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Views of all operations must be contiguous. recv holds `size()` parts of send's shape, in rank
  // order.
  virtual absl::Status AllGather(const kernels::TensorView& send, const kernels::TensorView& recv,
                                 kernels::Stream& stream) = 0;
  // Starts an AllGather and returns: what is computed before Wait overlaps with it.
  virtual absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const kernels::TensorView& send,
                                                                  const kernels::TensorView& recv,
                                                                  kernels::Stream& stream) = 0;
  // Rank r contributes counts[r] rows (first dimension). recv holds all rows, in rank order.
  virtual absl::Status AllGatherV(const kernels::TensorView& send, const kernels::TensorView& recv,
                                  std::span<const int64_t> counts, kernels::Stream& stream) = 0;
  // In place, f32.
  virtual absl::Status AllReduce(const kernels::TensorView& data, ReduceOp op,
                                 kernels::Stream& stream) = 0;
  // Part r of send goes to rank r; part r of recv comes from rank r. Equal parts.
  virtual absl::Status AllToAll(const kernels::TensorView& send, const kernels::TensorView& recv,
                                kernels::Stream& stream) = 0;
  // Sends to `target` and receives from `source` at the same time (a ring step).
  virtual absl::Status SendRecv(const kernels::TensorView& send, int target,
                                const kernels::TensorView& recv, int source,
                                kernels::Stream& stream) = 0;
  virtual absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const kernels::TensorView& send,
                                                                 int target,
                                                                 const kernels::TensorView& recv,
                                                                 int source,
                                                                 kernels::Stream& stream) = 0;
  virtual absl::Status Broadcast(const kernels::TensorView& data, int root,
                                 kernels::Stream& stream) = 0;
  virtual absl::Status Barrier() = 0;

  // Whether a collective that is called while the stream records (kernels::Backend::Record) becomes
  // part of the recording. If so, all ranks record and launch together. If not, the CPU runs the
  // collective at the time of the call.
  virtual bool recordable() const = 0;
  // Breaks the communicator; wakes a blocked call. Thread-safe.
  virtual void Abort(std::string reason) = 0;
  virtual CommunicatorStats stats() const = 0;
};

}  // namespace apb::comm
