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

namespace {

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
    if (!waited_ && requests[0] != MPI_REQUEST_NULL) Complete().IgnoreError();
  }
  absl::Status Wait(kernels::Stream&) override { return Complete(); }
  MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  std::vector<int> sizes,
      offsets;  // of all_gather_v, in rows by rank; MPI reads them until it ends

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

absl::Status MpiCommunicator::StartEqual(const Collective& c, MpiPending& pending) {
  const void* send = c.send.data;
  void* recv = c.recv.data;
  MPI_Request* request = &pending.requests[0];
  if (c.kind == Collective::Kind::kAllReduce) {
    APB_RETURN_IF_ERROR(CheckCount(c.name(), c.recv.numel()));
    return Started(c.name(),
                   MPI_Iallreduce(MPI_IN_PLACE, recv, static_cast<int>(c.recv.numel()), MPI_FLOAT,
                                  c.op == ReduceOp::kSum ? MPI_SUM : MPI_MAX, comm_, request));
  }
  const bool whole = c.kind == Collective::Kind::kBroadcast;
  APB_ASSIGN_OR_RETURN(const Units u, Units::Of(whole ? BytesOf(c.recv) : BytesOf(c.recv) / size_));
  if (whole) {
    return Started(c.name(), MPI_Ibcast(recv, u.count, u.type, c.source, comm_, request));
  }
  if (c.kind == Collective::Kind::kAllGather) {
    return Started(c.name(),
                   MPI_Iallgather(send, u.count, u.type, recv, u.count, u.type, comm_, request));
  }
  return Started(c.name(),
                 MPI_Ialltoall(send, u.count, u.type, recv, u.count, u.type, comm_, request));
}

absl::Status MpiCommunicator::StartAllGatherV(const Collective& c, MpiPending& pending) {
  int64_t rows = 0;
  for (const int64_t count : c.counts) {
    pending.sizes.push_back(static_cast<int>(count));
    pending.offsets.push_back(static_cast<int>(rows));
    rows += count;
    APB_RETURN_IF_ERROR(CheckCount(c.name(), rows));
  }
  const int64_t row_bytes = rows == 0 ? 0 : BytesOf(c.recv) / rows;
  APB_RETURN_IF_ERROR(CheckCount(c.name(), row_bytes));
  MPI_Datatype row;  // counts and offsets are in rows, so the bytes may exceed an int
  MPI_Type_contiguous(static_cast<int>(row_bytes), MPI_BYTE, &row);
  MPI_Type_commit(&row);
  const int code =
      MPI_Iallgatherv(c.send.data, pending.sizes[rank_], row, c.recv.data, pending.sizes.data(),
                      pending.offsets.data(), row, comm_, &pending.requests[0]);
  MPI_Type_free(&row);
  return Started(c.name(), code);
}

absl::Status MpiCommunicator::StartSendRecv(const Collective& c, MpiPending& pending) {
  APB_ASSIGN_OR_RETURN(const Units out, Units::Of(BytesOf(c.send)));
  APB_ASSIGN_OR_RETURN(const Units in, Units::Of(BytesOf(c.recv)));
  APB_RETURN_IF_ERROR(Started(c.name(), MPI_Irecv(c.recv.data, in.count, in.type, c.source,
                                                  kSendRecvTag, comm_, &pending.requests[0])));
  return Started(c.name(), MPI_Isend(c.send.data, out.count, out.type, c.target, kSendRecvTag,
                                     comm_, &pending.requests[1]));
}

absl::StatusOr<std::unique_ptr<Pending>> MpiCommunicator::DoStart(const Collective& c,
                                                                  kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(Begin(&stream, c.name()));
  auto pending = std::make_unique<MpiPending>(*this, c.name(), c.BytesSent(rank_, size_));
  APB_RETURN_IF_ERROR(c.kind == Collective::Kind::kAllGatherV ? StartAllGatherV(c, *pending)
                      : c.kind == Collective::Kind::kSendRecv ? StartSendRecv(c, *pending)
                                                              : StartEqual(c, *pending));
  return pending;
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
