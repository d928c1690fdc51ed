#include "engine/comm/mpi_communicator.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/comm/mpi_wait.h"

namespace apb::comm {

using kernels::TensorView;

namespace {
int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(SizeOf(view.dtype));
}

// MPI's counts are ints. A message of 2 GiB or more is sent as units whose size is the largest
// power of two that divides it, up to 1 GiB.
class Units {
 public:
  static absl::StatusOr<Units> Of(int64_t bytes) {
    if (bytes <= INT32_MAX) return Units(MPI_BYTE, bytes, false);
    const int64_t unit = std::min<int64_t>(bytes & -bytes, int64_t{1} << 30);
    if (bytes / unit > INT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat("a message of ", bytes, " bytes: too long to go in units of ", unit));
    }
    MPI_Datatype type;
    MPI_Type_contiguous(static_cast<int>(unit), MPI_BYTE, &type);
    MPI_Type_commit(&type);
    return Units(type, bytes / unit, true);
  }
  Units(Units&& other) noexcept
      : type(other.type), count(other.count), owned_(std::exchange(other.owned_, false)) {}
  // MPI keeps a freed type until the operations that use it are done.
  ~Units() {
    if (owned_) MPI_Type_free(&type);
  }
  MPI_Datatype type;
  int count;

 private:
  Units(MPI_Datatype type, int64_t count, bool owned)
      : type(type), count(static_cast<int>(count)), owned_(owned) {}
  bool owned_;
};

absl::Status CheckCount(const char* operation, int64_t count) {
  if (count >= 0 && count <= INT32_MAX) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(operation, ": ", count, " elements, at most ", INT32_MAX, " go in one call"));
}
}  // namespace

class MpiPending : public Pending {
 public:
  MpiPending(MpiCommunicator& owner, const char* operation, int64_t bytes)
      : owner_(owner), operation_(operation), bytes_(bytes) {}
  // Without a Wait, MPI may still write to the operation's buffers.
  ~MpiPending() override {
    if (!waited_) Complete().IgnoreError();
  }
  absl::Status Wait(kernels::Stream&) override { return Complete(); }
  MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};

 private:
  absl::Status Complete() {
    waited_ = true;
    return owner_.Finish(operation_, bytes_, requests, 2);
  }
  MpiCommunicator& owner_;
  const char* operation_;
  int64_t bytes_;
  bool waited_ = false;
};

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::Create(absl::Duration deadline,
                                                                      int color) {
  auto c = std::unique_ptr<MpiCommunicator>(new MpiCommunicator(deadline));
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (MPI_Comm_split(MPI_COMM_WORLD, color, rank, &c->comm_) != MPI_SUCCESS)
    return absl::UnavailableError("MPI_Comm_split failed");
  MPI_Comm_set_errhandler(c->comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(c->comm_, &c->rank_);
  MPI_Comm_size(c->comm_, &c->size_);
  return std::unique_ptr<Communicator>(std::move(c));
}

MpiCommunicator::~MpiCommunicator() {
  // A broken communicator may have operations in flight; freeing it could wait for the lost peer.
  if (broken_.ok() && !aborted_.load()) MPI_Comm_free(&comm_);
}

absl::Status MpiCommunicator::Begin(kernels::Stream* stream, const char* operation) {
  if (broken_.ok() && aborted_.load()) broken_ = absl::UnavailableError("aborted");
  if (!broken_.ok())
    return absl::UnavailableError(absl::StrCat(operation, ": broken before: ", broken_.message()));
  if (stream != nullptr) APB_RETURN_IF_ERROR(stream->Synchronize());
  return absl::OkStatus();
}

absl::Status MpiCommunicator::Started(const char* operation, int code) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  broken_ = MpiError(code, operation);
  return broken_;
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
  APB_ASSIGN_OR_RETURN(const Units units, Units::Of(Bytes(send)));
  auto pending = std::make_unique<MpiPending>(*this, "all_gather", Bytes(send) * (size_ - 1));
  APB_RETURN_IF_ERROR(
      Started("all_gather", MPI_Iallgather(send.data, units.count, units.type, recv.data,
                                           units.count, units.type, comm_, &pending->requests[0])));
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
  std::vector<int> sizes, offsets;
  int64_t rows = 0;
  for (const int64_t count : counts) {
    sizes.push_back(static_cast<int>(count));
    offsets.push_back(static_cast<int>(rows));
    rows += count;
    APB_RETURN_IF_ERROR(CheckCount("all_gather_v", rows));
  }
  if (static_cast<int>(counts.size()) != size_ || rows != recv.rows() ||
      counts[rank_] != send.rows()) {
    return absl::InvalidArgumentError("all_gather_v: counts do not match the views");
  }
  const int64_t row_bytes = rows == 0 ? 0 : Bytes(recv) / rows;
  APB_RETURN_IF_ERROR(CheckCount("all_gather_v", row_bytes));
  MPI_Datatype row;  // counts and offsets are in rows, so the bytes may exceed an int
  MPI_Type_contiguous(static_cast<int>(row_bytes), MPI_BYTE, &row);
  MPI_Type_commit(&row);
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Iallgatherv(send.data, sizes[rank_], row, recv.data, sizes.data(),
                                   offsets.data(), row, comm_, &request);
  MPI_Type_free(&row);
  APB_RETURN_IF_ERROR(Started("all_gather_v", code));
  return Finish("all_gather_v", Bytes(send) * (size_ - 1), &request, 1);
}

absl::Status MpiCommunicator::AllReduce(const TensorView& data, ReduceOp op,
                                        kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_reduce"));
  APB_RETURN_IF_ERROR(CheckCount("all_reduce", data.numel()));
  MPI_Request request = MPI_REQUEST_NULL;
  APB_RETURN_IF_ERROR(
      Started("all_reduce",
              MPI_Iallreduce(MPI_IN_PLACE, data.data, static_cast<int>(data.numel()), MPI_FLOAT,
                             op == ReduceOp::kSum ? MPI_SUM : MPI_MAX, comm_, &request)));
  return Finish("all_reduce", Bytes(data), &request, 1);
}

absl::Status MpiCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                       kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "all_to_all"));
  if (Bytes(send) != Bytes(recv) || Bytes(send) % size_ != 0)
    return absl::InvalidArgumentError("all_to_all: size() equal parts wanted");
  APB_ASSIGN_OR_RETURN(const Units units, Units::Of(Bytes(send) / size_));
  MPI_Request request = MPI_REQUEST_NULL;
  APB_RETURN_IF_ERROR(
      Started("all_to_all", MPI_Ialltoall(send.data, units.count, units.type, recv.data,
                                          units.count, units.type, comm_, &request)));
  return Finish("all_to_all", Bytes(send) / size_ * (size_ - 1), &request, 1);
}

absl::StatusOr<std::unique_ptr<Pending>> MpiCommunicator::StartSendRecv(const TensorView& send,
                                                                        int target,
                                                                        const TensorView& recv,
                                                                        int source,
                                                                        kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "send_recv"));
  APB_ASSIGN_OR_RETURN(const Units out, Units::Of(Bytes(send)));
  APB_ASSIGN_OR_RETURN(const Units in, Units::Of(Bytes(recv)));
  auto pending = std::make_unique<MpiPending>(*this, "send_recv", Bytes(send));
  APB_RETURN_IF_ERROR(Started("send_recv", MPI_Irecv(recv.data, in.count, in.type, source,
                                                     kSendRecvTag, comm_, &pending->requests[0])));
  APB_RETURN_IF_ERROR(Started("send_recv", MPI_Isend(send.data, out.count, out.type, target,
                                                     kSendRecvTag, comm_, &pending->requests[1])));
  return std::unique_ptr<Pending>(std::move(pending));
}

absl::Status MpiCommunicator::SendRecv(const TensorView& send, int target, const TensorView& recv,
                                       int source, kernels::Stream& stream) {
  APB_ASSIGN_OR_RETURN(auto pending, StartSendRecv(send, target, recv, source, stream));
  return pending->Wait(stream);
}

absl::Status MpiCommunicator::Broadcast(const TensorView& data, int root, kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, "broadcast"));
  APB_ASSIGN_OR_RETURN(const Units units, Units::Of(Bytes(data)));
  MPI_Request request = MPI_REQUEST_NULL;
  APB_RETURN_IF_ERROR(
      Started("broadcast", MPI_Ibcast(data.data, units.count, units.type, root, comm_, &request)));
  return Finish("broadcast", rank_ == root ? Bytes(data) * (size_ - 1) : 0, &request, 1);
}

absl::Status MpiCommunicator::Barrier() {
  APB_RETURN_IF_ERROR(Begin(nullptr, "barrier"));
  MPI_Request request = MPI_REQUEST_NULL;
  APB_RETURN_IF_ERROR(Started("barrier", MPI_Ibarrier(comm_, &request)));
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

}  // namespace apb::comm
