// Collectives between the ranks of a context group. All ranks make the same calls in the same
// order. A lost peer, or an operation that outlives the deadline, breaks the communicator for good:
// every later call returns kUnavailable and names the operation. Calls come from one thread (the
// step thread), Abort from any.
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

// A collective under way. Its buffers must live, unchanged, until Wait returns.
class Pending {
 public:
  virtual ~Pending() = default;
  // Makes `stream` wait for the result (on a device: by an event; on the host: until it is there).
  virtual absl::Status Wait(kernels::Stream& stream) = 0;
};

// Counters since the start, by operation name; read by the owner thread.
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

  // recv is `size()` contiguous parts of send's shape, in rank order. Views must be contiguous.
  virtual absl::Status AllGather(const kernels::TensorView& send, const kernels::TensorView& recv,
                                 kernels::Stream& stream) = 0;
  // Starts the same and returns; compute between start and Wait overlaps.
  virtual absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const kernels::TensorView& send,
                                                                  const kernels::TensorView& recv,
                                                                  kernels::Stream& stream) = 0;
  // Rank r contributes counts[r] rows (first dimension); recv has their sum.
  virtual absl::Status AllGatherV(const kernels::TensorView& send, const kernels::TensorView& recv,
                                  std::span<const int64_t> counts, kernels::Stream& stream) = 0;
  virtual absl::Status AllReduce(const kernels::TensorView& data, ReduceOp op,
                                 kernels::Stream& stream) = 0;  // in place, f32
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

  // Whether collectives that are given to a stream while it records (kernels::Backend::Record)
  // become part of the recording. Ranks record and launch together then, all or none. No: they are
  // done at once, by the host.
  virtual bool recordable() const = 0;
  // Breaks the communicator; wakes a blocked call. Thread-safe.
  virtual void Abort(std::string reason) = 0;
  virtual CommunicatorStats stats() const = 0;
};

}  // namespace apb::comm
