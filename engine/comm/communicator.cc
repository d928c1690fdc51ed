#include "engine/comm/communicator.h"

#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::comm {

const char* Collective::name() const {
  switch (kind) {
    case Kind::kAllGather:
      return "all_gather";
    case Kind::kAllGatherV:
      return "all_gather_v";
    case Kind::kAllReduce:
      return "all_reduce";
    case Kind::kAllToAll:
      return "all_to_all";
    case Kind::kSendRecv:
      return "send_recv";
    case Kind::kBroadcast:
      break;
  }
  return "broadcast";
}

int64_t Collective::BytesSent(int rank, int size) const {
  switch (kind) {
    case Kind::kAllGather:
    case Kind::kAllGatherV:
      return BytesOf(send) * (size - 1);
    case Kind::kAllReduce:
      return BytesOf(recv);
    case Kind::kAllToAll:
      return BytesOf(send) / size * (size - 1);
    case Kind::kSendRecv:
      return BytesOf(send);
    case Kind::kBroadcast:
      break;
  }
  return rank == source ? BytesOf(recv) * (size - 1) : 0;
}

absl::Status Collective::Check(int rank, int size) const {
  const auto bad = [&](const char* problem) {
    return absl::InvalidArgumentError(absl::StrCat(name(), ": ", problem));
  };
  const auto is_rank = [&](int r) { return r >= 0 && r < size; };
  switch (kind) {
    case Kind::kAllGather:
      if (BytesOf(recv) != BytesOf(send) * size) return bad("recv must be size() times send");
      break;
    case Kind::kAllGatherV:
      if (static_cast<int>(counts.size()) != size || counts[rank] != send.rows() ||
          std::accumulate(counts.begin(), counts.end(), int64_t{0}) != recv.rows())
        return bad("counts do not match the views");
      break;
    case Kind::kAllReduce:
      if (recv.dtype != kernels::DType::kF32) return bad("the data must be f32");
      break;
    case Kind::kAllToAll:
      if (BytesOf(send) != BytesOf(recv) || BytesOf(send) % size != 0)
        return bad("send and recv must be size() equal parts");
      break;
    case Kind::kSendRecv:
      if (!is_rank(target) || !is_rank(source)) return bad("no such rank");
      break;
    case Kind::kBroadcast:
      if (!is_rank(source)) return bad("no such rank");
      break;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Pending>> Communicator::Start(const Collective& collective,
                                                             kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(collective.Check(rank(), size()));
  return DoStart(collective, stream);
}

absl::Status Communicator::Run(const Collective& collective, kernels::Stream& stream) {
  APB_ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending, Start(collective, stream));
  return pending->Wait(stream);
}

}  // namespace apb::comm
