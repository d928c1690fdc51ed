#include "engine/parallel/mpi_communicator.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/parallel/mpi_wait.h"

namespace apb::parallel {

using kernels::TensorView;

namespace {
int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(SizeOf(view.dtype));
}

// Counts of MPI are ints: large messages travel in units of 64 bytes when that divides them.
struct Unit {
  MPI_Datatype type;
  int count;
};
absl::StatusOr<Unit> UnitOf(int64_t bytes) {
  if (bytes <= INT32_MAX) return Unit{MPI_BYTE, static_cast<int>(bytes)};
  static const MPI_Datatype wide = [] {
    MPI_Datatype type;
    MPI_Type_contiguous(64, MPI_BYTE, &type);
    MPI_Type_commit(&type);
    return type;
  }();
  if (bytes % 64 != 0 || bytes / 64 > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", bytes, " bytes: over 2 GiB it must be a multiple of 64"));
  }
  return Unit{wide, static_cast<int>(bytes / 64)};
}
}  // namespace

class MpiPending : public Pending {
 public:
  MpiPending(MpiCommunicator& owner, const char* operation, int64_t bytes)
      : owner_(owner), operation_(operation), bytes_(bytes) {}
  absl::Status Wait(kernels::Stream&) override {
    return owner_.Finish(operation_, bytes_, requests, 2);
  }
  MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};

 private:
  MpiCommunicator& owner_;
  const char* operation_;
  int64_t bytes_;
};

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::Create(absl::Duration deadline) {
  auto c = std::unique_ptr<MpiCommunicator>(new MpiCommunicator(deadline));
  if (MPI_Comm_dup(MPI_COMM_WORLD, &c->comm_) != MPI_SUCCESS)
    return absl::UnavailableError("MPI_Comm_dup failed");
  MPI_Comm_set_errhandler(c->comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(c->comm_, &c->rank_);
  MPI_Comm_size(c->comm_, &c->size_);
  return std::unique_ptr<Communicator>(std::move(c));
}

MpiCommunicator::~MpiCommunicator() {
  // A broken communicator may have operations under way; freeing it could wait for the lost peer.
  if (broken_.ok() && !aborted_.load()) MPI_Comm_free(&comm_);
}

absl::Status MpiCommunicator::Begin(kernels::Stream* stream, const char* operation) {
  if (!broken_.ok())
    return absl::UnavailableError(absl::StrCat(operation, ": broken before: ", broken_.message()));
  if (stream != nullptr) APB_RETURN_IF_ERROR(stream->Synchronize());
  return absl::OkStatus();
}

absl::Status MpiCommunicator::Finish(const char* operation, int64_t bytes_sent,
                                     MPI_Request* requests, int count) {
  const absl::Time start = absl::Now();
  absl::Status status = WaitAll(requests, count, deadline_, &aborted_, operation);
  CommunicatorStats::Operation& op = operations_[operation];
  op.name = operation;
  ++op.calls;
  op.bytes_sent += bytes_sent;
  op.seconds += absl::ToDoubleSeconds(absl::Now() - start);
  if (!status.ok()) broken_ = status;
  return status;
}

absl::StatusOr<std::unique_ptr<Pending>> MpiCommunicator::StartAllGather(const TensorView& send,
                                                                         const TensorView& recv,
                                                                         kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_gather"));
  if (Bytes(recv) != Bytes(send) * size_)
    return absl::InternalError("all_gather: recv must be size() times send");
  APB_ASSIGN_OR_RETURN(const Unit unit, UnitOf(Bytes(send)));
  auto pending = std::make_unique<MpiPending>(*this, "all_gather", Bytes(send) * (size_ - 1));
  MPI_Iallgather(send.data, unit.count, unit.type, recv.data, unit.count, unit.type, comm_,
                 &pending->requests[0]);
  return std::unique_ptr<Pending>(std::move(pending));
}

absl::Status MpiCommunicator::AllGather(const TensorView& send, const TensorView& recv,
                                        kernels::Stream& stream) {
  APB_ASSIGN_OR_RETURN(auto pending, StartAllGather(send, recv, stream));
  return pending->Wait(stream);
}

absl::Status MpiCommunicator::AllGatherV(const TensorView& send, const TensorView& recv,
                                         std::span<const int64_t> counts, kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_gather_v"));
  const int64_t row = recv.rows() == 0 ? 0 : Bytes(recv) / recv.rows();
  std::vector<int> sizes, offsets;
  int64_t at = 0;
  for (const int64_t count : counts) {
    sizes.push_back(static_cast<int>(count * row));
    offsets.push_back(static_cast<int>(at));
    at += count * row;
  }
  if (at > INT32_MAX || static_cast<int>(counts.size()) != size_)
    return absl::InvalidArgumentError(
        "all_gather_v: larger than 2 GiB, or counts of another group");
  MPI_Request request;
  MPI_Iallgatherv(send.data, sizes[rank_], MPI_BYTE, recv.data, sizes.data(), offsets.data(),
                  MPI_BYTE, comm_, &request);
  return Finish("all_gather_v", static_cast<int64_t>(sizes[rank_]) * (size_ - 1), &request, 1);
}

absl::Status MpiCommunicator::AllReduce(const TensorView& data, ReduceOp op,
                                        kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_reduce"));
  MPI_Request request;
  MPI_Iallreduce(MPI_IN_PLACE, data.data, static_cast<int>(data.numel()), MPI_FLOAT,
                 op == ReduceOp::kSum ? MPI_SUM : MPI_MAX, comm_, &request);
  return Finish("all_reduce", Bytes(data), &request, 1);
}

absl::Status MpiCommunicator::ReduceScatter(const TensorView& send, const TensorView& recv,
                                            kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "reduce_scatter"));
  MPI_Request request;
  MPI_Ireduce_scatter_block(send.data, recv.data, static_cast<int>(recv.numel()), MPI_FLOAT,
                            MPI_SUM, comm_, &request);
  return Finish("reduce_scatter", Bytes(send) - Bytes(recv), &request, 1);
}

absl::Status MpiCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                       kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_to_all"));
  APB_ASSIGN_OR_RETURN(const Unit unit, UnitOf(Bytes(send) / size_));
  MPI_Request request;
  MPI_Ialltoall(send.data, unit.count, unit.type, recv.data, unit.count, unit.type, comm_,
                &request);
  return Finish("all_to_all", Bytes(send) / size_ * (size_ - 1), &request, 1);
}

absl::StatusOr<std::unique_ptr<Pending>> MpiCommunicator::StartSendRecv(const TensorView& send,
                                                                        int target,
                                                                        const TensorView& recv,
                                                                        int source,
                                                                        kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "send_recv"));
  APB_ASSIGN_OR_RETURN(const Unit out, UnitOf(Bytes(send)));
  APB_ASSIGN_OR_RETURN(const Unit in, UnitOf(Bytes(recv)));
  auto pending = std::make_unique<MpiPending>(*this, "send_recv", Bytes(send));
  MPI_Irecv(recv.data, in.count, in.type, source, 0, comm_, &pending->requests[0]);
  MPI_Isend(send.data, out.count, out.type, target, 0, comm_, &pending->requests[1]);
  return std::unique_ptr<Pending>(std::move(pending));
}

absl::Status MpiCommunicator::SendRecv(const TensorView& send, int target, const TensorView& recv,
                                       int source, kernels::Stream& stream) {
  APB_ASSIGN_OR_RETURN(auto pending, StartSendRecv(send, target, recv, source, stream));
  return pending->Wait(stream);
}

absl::Status MpiCommunicator::Broadcast(const TensorView& data, int root, kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "broadcast"));
  APB_ASSIGN_OR_RETURN(const Unit unit, UnitOf(Bytes(data)));
  MPI_Request request;
  MPI_Ibcast(data.data, unit.count, unit.type, root, comm_, &request);
  return Finish("broadcast", rank_ == root ? Bytes(data) * (size_ - 1) : 0, &request, 1);
}

absl::Status MpiCommunicator::Barrier() {
  APB_RETURN_IF_ERROR(Begin(nullptr, "barrier"));
  MPI_Request request;
  MPI_Ibarrier(comm_, &request);
  return Finish("barrier", 0, &request, 1);
}

void MpiCommunicator::Abort(std::string reason) {
  APB_LOG(Error, "communicator aborted: ", reason);
  aborted_.store(true);
}

CommunicatorStats MpiCommunicator::stats() const {
  CommunicatorStats stats;
  for (const auto& [name, operation] : operations_) stats.operations.push_back(operation);
  return stats;
}

}  // namespace apb::parallel
