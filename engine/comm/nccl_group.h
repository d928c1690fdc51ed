// One ncclComm_t, the stream that its collectives run on, and the watchdog over them.
// nccl_communicator.h describes what callers see of it; nccl_communicator.cc knows which NCCL calls
// make a collective.
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

// One thread makes all calls, except Abort, which any thread may call. The watchdog has its own
// thread.
class NcclGroup {
 public:
  using CudaStream = kernels::cuda::CudaStream;
  // Calls and bytes by operation.
  using Operations = std::map<std::string, CommunicatorStats::Operation>;

  NcclGroup(int rank, int size, absl::Duration deadline)
      : rank_(rank), size_(size), deadline_(deadline) {}
  // Waits, within the deadline, for the collectives in flight and for the end of graphs.
  ~NcclGroup();
  // Connects to the other ranks, on the thread's current device. All ranks call it together.
  absl::Status Connect(const std::string& id);

  // Enqueues the NCCL calls that `call` makes on the communication stream, behind the work of
  // `stream`. `name` must be a literal.
  absl::StatusOr<std::unique_ptr<Pending>> Start(
      const char* name, int64_t bytes_sent, kernels::Stream& stream,
      const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call);
  // As Communicator::Abort.
  void Abort(std::string reason);
  // Counts every collective that has ended, whether the watchdog has seen its end or not.
  CommunicatorStats stats() const;

  // The next three are called by the pending collectives and graphs that Start makes.
  // Makes `stream` wait for the collective, and fail if the watchdog gives it up.
  absl::Status LetWait(const std::shared_ptr<NcclCollective>& collective, CudaStream& stream);
  // Marks the launch of a graph with collectives of this group, or fails the stream.
  std::shared_ptr<NcclCollective> BeginLaunch(CudaStream& stream,
                                              std::shared_ptr<const Operations> operations);
  // Marks the end of the launch. From here on the watchdog watches it.
  void EndLaunch(std::shared_ptr<NcclCollective> launch, CudaStream& stream);

 private:
  // Waits until NCCL has done what `result`'s call started: calls return before that.
  absl::Status Settle(ncclResult_t result, const char* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Breaks the communicator: gives up all collectives in flight. The first reason is kept.
  absl::Status Break(const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch();
  // One round of the watchdog: counts the collectives that have ended, and breaks the communicator
  // if it was aborted, failed, or let the oldest collective outlive the deadline.
  void LookAfter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int rank_, size_;
  const absl::Duration deadline_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> abort_wanted_{false};

  absl::Mutex abort_mutex_;  // its own mutex, because mutex_ is held while NCCL works
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
