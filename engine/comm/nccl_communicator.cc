#include "engine/comm/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/comm/nccl_group.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::comm {
namespace {

using kernels::cuda::CudaStream;
using kernels::cuda::StatusOf;

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(int rank, int size, absl::Duration deadline)
      : rank_(rank), size_(size), group_(rank, size, deadline) {}
  absl::Status Connect(const std::string& id);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status Barrier() override;
  bool recordable() const override { return true; }
  void Abort(std::string reason) override { group_.Abort(std::move(reason)); }
  CommunicatorStats stats() const override { return group_.stats(); }

 private:
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& collective,
                                                   kernels::Stream& stream) override;
  // The NCCL calls of a collective.
  ncclResult_t Call(const Collective& c, ncclComm_t comm, cudaStream_t stream) const;
  ncclResult_t CallAllGatherV(const Collective& c, ncclComm_t comm, cudaStream_t stream) const;
  ncclResult_t CallAllToAll(const Collective& c, ncclComm_t comm, cudaStream_t stream) const;

  struct CudaFree {
    void operator()(float* memory) const { cudaFree(memory); }
  };

  const int rank_, size_;
  std::unique_ptr<CudaStream> barrier_stream_;
  std::unique_ptr<float, CudaFree> barrier_word_;
  NcclGroup group_;  // last, so that it is destroyed before the memory that its collectives use
};

absl::Status NcclCommunicator::Connect(const std::string& id) {
  APB_ASSIGN_OR_RETURN(barrier_stream_, CudaStream::Create());
  void* word = nullptr;
  APB_RETURN_IF_ERROR(StatusOf(cudaMalloc(&word, sizeof(float)), "nccl: barrier"));
  barrier_word_.reset(static_cast<float*>(word));
  APB_RETURN_IF_ERROR(StatusOf(cudaMemset(word, 0, sizeof(float)), "nccl: barrier"));
  return group_.Connect(id);
}

absl::StatusOr<std::unique_ptr<Pending>> NcclCommunicator::DoStart(const Collective& collective,
                                                                   kernels::Stream& stream) {
  return group_.Start(collective.name(), collective.BytesSent(rank_, size_), stream,
                      [&](ncclComm_t comm, cudaStream_t s) { return Call(collective, comm, s); });
}

ncclResult_t NcclCommunicator::Call(const Collective& c, ncclComm_t comm,
                                    cudaStream_t stream) const {
  const void* send = c.send.data;
  void* recv = c.recv.data;
  switch (c.kind) {
    case Collective::Kind::kAllGather:
      return ncclAllGather(send, recv, BytesOf(c.send), ncclInt8, comm, stream);
    case Collective::Kind::kAllGatherV:
      return CallAllGatherV(c, comm, stream);
    case Collective::Kind::kAllReduce:
      return ncclAllReduce(recv, recv, c.recv.numel(), ncclFloat,
                           c.op == ReduceOp::kSum ? ncclSum : ncclMax, comm, stream);
    case Collective::Kind::kAllToAll:
      return CallAllToAll(c, comm, stream);
    case Collective::Kind::kSendRecv:
      ncclGroupStart();
      ncclSend(send, BytesOf(c.send), ncclInt8, c.target, comm, stream);
      ncclRecv(recv, BytesOf(c.recv), ncclInt8, c.source, comm, stream);
      return ncclGroupEnd();
    case Collective::Kind::kBroadcast:
      break;
  }
  return ncclBroadcast(recv, recv, BytesOf(c.recv), ncclInt8, c.source, comm, stream);
}

ncclResult_t NcclCommunicator::CallAllGatherV(const Collective& c, ncclComm_t comm,
                                              cudaStream_t stream) const {
  const int64_t row_bytes = c.recv.rows() == 0 ? 0 : BytesOf(c.recv) / c.recv.rows();
  std::byte* to = c.recv.as<std::byte>();
  ncclGroupStart();
  for (int r = 0; r < size_; ++r) {
    const int64_t bytes = c.counts[r] * row_bytes;
    ncclBroadcast(r == rank_ ? c.send.data : to, to, bytes, ncclInt8, r, comm, stream);
    to += bytes;
  }
  return ncclGroupEnd();
}

ncclResult_t NcclCommunicator::CallAllToAll(const Collective& c, ncclComm_t comm,
                                            cudaStream_t stream) const {
  const int64_t part = BytesOf(c.send) / size_;
  ncclGroupStart();
  for (int r = 0; r < size_; ++r) {
    ncclSend(c.send.as<std::byte>() + r * part, part, ncclInt8, r, comm, stream);
    ncclRecv(c.recv.as<std::byte>() + r * part, part, ncclInt8, r, comm, stream);
  }
  return ncclGroupEnd();
}

absl::Status NcclCommunicator::Barrier() {
  APB_ASSIGN_OR_RETURN(
      const std::unique_ptr<Pending> pending,
      group_.Start("barrier", 0, *barrier_stream_, [&](ncclComm_t comm, cudaStream_t stream) {
        return ncclAllReduce(barrier_word_.get(), barrier_word_.get(), 1, ncclFloat, ncclSum, comm,
                             stream);
      }));
  APB_RETURN_IF_ERROR(pending->Wait(*barrier_stream_));
  return barrier_stream_->Synchronize();
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

}  // namespace apb::comm
