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

using kernels::TensorView;
using kernels::cuda::CudaStream;
using kernels::cuda::StatusOf;

int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(SizeOf(view.dtype));
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(int rank, int size, absl::Duration deadline)
      : rank_(rank), size_(size), group_(rank, size, deadline) {}
  absl::Status Connect(const std::string& id);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllGather(const TensorView& send, const TensorView& recv,
                         kernels::Stream& stream) override {
    return WaitFor(StartAllGather(send, recv, stream), stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const TensorView& send,
                                                          const TensorView& recv,
                                                          kernels::Stream& stream) override;
  absl::Status AllGatherV(const TensorView& send, const TensorView& recv,
                          std::span<const int64_t> counts, kernels::Stream& stream) override;
  absl::Status AllReduce(const TensorView& data, ReduceOp op, kernels::Stream& stream) override;
  absl::Status AllToAll(const TensorView& send, const TensorView& recv,
                        kernels::Stream& stream) override;
  absl::Status SendRecv(const TensorView& send, int target, const TensorView& recv, int source,
                        kernels::Stream& stream) override {
    return WaitFor(StartSendRecv(send, target, recv, source, stream), stream);
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const TensorView& send, int target,
                                                         const TensorView& recv, int source,
                                                         kernels::Stream& stream) override;
  absl::Status Broadcast(const TensorView& data, int root, kernels::Stream& stream) override;
  absl::Status Barrier() override;
  bool recordable() const override { return true; }
  void Abort(std::string reason) override { group_.Abort(std::move(reason)); }
  CommunicatorStats stats() const override { return group_.stats(); }

 private:
  using Pendings = absl::StatusOr<std::unique_ptr<Pending>>;

  absl::Status WaitFor(Pendings pending, kernels::Stream& stream) {
    APB_RETURN_IF_ERROR(pending.status());
    return (*pending)->Wait(stream);
  }

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

NcclCommunicator::Pendings NcclCommunicator::StartAllGather(const TensorView& send,
                                                            const TensorView& recv,
                                                            kernels::Stream& stream) {
  if (Bytes(recv) != Bytes(send) * size_)
    return absl::InternalError("all_gather: recv must be size() times send");
  return group_.Start("all_gather", Bytes(send) * (size_ - 1), stream,
                      [&](ncclComm_t c, cudaStream_t s) {
                        return ncclAllGather(send.data, recv.data, Bytes(send), ncclInt8, c, s);
                      });
}

absl::Status NcclCommunicator::AllGatherV(const TensorView& send, const TensorView& recv,
                                          std::span<const int64_t> counts,
                                          kernels::Stream& stream) {
  int64_t rows = 0;
  for (const int64_t count : counts) rows += count;
  if (static_cast<int>(counts.size()) != size_ || rows != recv.rows() ||
      counts[rank_] != send.rows()) {
    return absl::InvalidArgumentError("all_gather_v: counts do not match the views");
  }
  const int64_t row_bytes = rows == 0 ? 0 : Bytes(recv) / rows;
  return WaitFor(group_.Start("all_gather_v", Bytes(send) * (size_ - 1), stream,
                              [&](ncclComm_t c, cudaStream_t s) {
                                ncclGroupStart();
                                std::byte* to = recv.as<std::byte>();
                                for (int r = 0; r < size_; ++r) {
                                  const int64_t bytes = counts[r] * row_bytes;
                                  ncclBroadcast(r == rank_ ? send.data : to, to, bytes, ncclInt8, r,
                                                c, s);
                                  to += bytes;
                                }
                                return ncclGroupEnd();
                              }),
                 stream);
}

absl::Status NcclCommunicator::AllReduce(const TensorView& data, ReduceOp op,
                                         kernels::Stream& stream) {
  return WaitFor(group_.Start("all_reduce", Bytes(data), stream,
                              [&](ncclComm_t c, cudaStream_t s) {
                                return ncclAllReduce(data.data, data.data, data.numel(), ncclFloat,
                                                     op == ReduceOp::kSum ? ncclSum : ncclMax, c,
                                                     s);
                              }),
                 stream);
}

absl::Status NcclCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                        kernels::Stream& stream) {
  if (Bytes(send) != Bytes(recv) || Bytes(send) % size_ != 0)
    return absl::InvalidArgumentError("all_to_all: size() equal parts wanted");
  const int64_t part = Bytes(send) / size_;
  return WaitFor(
      group_.Start("all_to_all", part * (size_ - 1), stream,
                   [&](ncclComm_t c, cudaStream_t s) {
                     ncclGroupStart();
                     for (int r = 0; r < size_; ++r) {
                       ncclSend(send.as<std::byte>() + r * part, part, ncclInt8, r, c, s);
                       ncclRecv(recv.as<std::byte>() + r * part, part, ncclInt8, r, c, s);
                     }
                     return ncclGroupEnd();
                   }),
      stream);
}

NcclCommunicator::Pendings NcclCommunicator::StartSendRecv(const TensorView& send, int target,
                                                           const TensorView& recv, int source,
                                                           kernels::Stream& stream) {
  return group_.Start("send_recv", Bytes(send), stream, [&](ncclComm_t c, cudaStream_t s) {
    ncclGroupStart();
    ncclSend(send.data, Bytes(send), ncclInt8, target, c, s);
    ncclRecv(recv.data, Bytes(recv), ncclInt8, source, c, s);
    return ncclGroupEnd();
  });
}

absl::Status NcclCommunicator::Broadcast(const TensorView& data, int root,
                                         kernels::Stream& stream) {
  return WaitFor(group_.Start("broadcast", rank_ == root ? Bytes(data) * (size_ - 1) : 0, stream,
                              [&](ncclComm_t c, cudaStream_t s) {
                                return ncclBroadcast(data.data, data.data, Bytes(data), ncclInt8,
                                                     root, c, s);
                              }),
                 stream);
}

absl::Status NcclCommunicator::Barrier() {
  APB_RETURN_IF_ERROR(WaitFor(group_.Start("barrier", 0, *barrier_stream_,
                                           [&](ncclComm_t c, cudaStream_t s) {
                                             return ncclAllReduce(barrier_word_.get(),
                                                                  barrier_word_.get(), 1, ncclFloat,
                                                                  ncclSum, c, s);
                                           }),
                              *barrier_stream_));
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
