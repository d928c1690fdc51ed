// One ncclComm_t: the stream that its collectives run on, and a watchdog over them
// (nccl_communicator.h says what callers see of it). Which calls of NCCL a collective is made of,
// nccl_communicator.cc knows.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/comm/communicator.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::comm {

struct NcclCollective;

// Calls come from one thread, but for Abort, and for the watchdog's.
class NcclGroup {
 public:
  using CudaStream = kernels::cuda::CudaStream;
  // Calls and bytes by operation.
  using Operations = std::map<std::string, CommunicatorStats::Operation>;

  NcclGroup(int rank, int size, absl::Duration deadline)
      : rank_(rank), size_(size), deadline_(deadline) {}
  // Waits for what is under way, and for the end of graphs, within the deadline.
  ~NcclGroup();
  // Meets the other ranks, on the thread's current device.
  absl::Status Connect(const std::string& id);

  // Enqueues what `call` does with the communicator and the communication stream, behind the work
  // of `stream`. `name` is a literal.
  absl::StatusOr<std::unique_ptr<Pending>> Start(
      const char* name, int64_t bytes_sent, kernels::Stream& stream,
      const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call);
  // As of Communicator.
  void Abort(std::string reason);
  // Of all that has ended, whether the watchdog has seen it or not.
  CommunicatorStats stats() const;

  // Of the pending collectives and graphs that Start makes:
  // makes `stream` wait for the collective, and fail if it is given up.
  absl::Status LetWait(const std::shared_ptr<NcclCollective>& collective, CudaStream& stream);
  // Marks the begin of a graph with collectives of this group, or fails the stream.
  std::shared_ptr<NcclCollective> BeginLaunch(CudaStream& stream,
                                              std::shared_ptr<const Operations> operations);
  // Its end: the watchdog looks after it from now on.
  void EndLaunch(std::shared_ptr<NcclCollective> launch, CudaStream& stream);

 private:
  // Until NCCL has done what it was asked for: calls return before that.
  absl::Status Settle(ncclResult_t result, const char* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives everything up; the first reason stays.
  absl::Status Break(const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch();
  // One look at the oldest collectives.
  void LookAfter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int rank_, size_;
  const absl::Duration deadline_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> abort_wanted_{false};

  absl::Mutex abort_mutex_;  // apart: mutex_ is held as long as NCCL takes
  std::string abort_reason_ ABSL_GUARDED_BY(abort_mutex_);
  mutable absl::Mutex mutex_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<NcclCollective>> under_way_ ABSL_GUARDED_BY(mutex_);
  Operations operations_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watchdog_;
  std::thread aborting_;  // started once, under mutex_
};

}  // namespace apb::comm
