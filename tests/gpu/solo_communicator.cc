#include "tests/gpu/solo_communicator.h"

#include <algorithm>

namespace apb::bench {

using comm::Pending;
using kernels::Stream;
using kernels::TensorView;

namespace {

int64_t Bytes(const TensorView& view) {
  return view.numel() * static_cast<int64_t>(kernels::SizeOf(view.dtype));
}

class Done : public Pending {
 public:
  absl::Status Wait(Stream&) override { return absl::OkStatus(); }
};

}  // namespace

void SoloCommunicator::Count(const char* name, int64_t messages, int64_t bytes) {
  comm::CommunicatorStats::Operation& operation = operations_[name];
  operation.name = name;
  ++operation.calls;
  operation.bytes_sent += bytes;
  messages_ += messages;
}

void SoloCommunicator::Fill(const TensorView& send, const TensorView& recv, Stream& stream) {
  const int64_t count = send.numel(), wanted = recv.numel(),
                size = static_cast<int64_t>(kernels::SizeOf(send.dtype));
  if (!echo_ || count == 0) return;
  for (int64_t at = 0; at < wanted; at += count) {
    const int64_t part = std::min(count, wanted - at);
    backend_.Copy(
        TensorView::Contiguous(send.data, send.dtype, {part}),
        TensorView::Contiguous(static_cast<std::byte*>(recv.data) + at * size, send.dtype, {part}),
        stream);
  }
}

int64_t SoloCommunicator::bytes_sent() const {
  int64_t bytes = 0;
  for (const auto& [name, operation] : operations_) bytes += operation.bytes_sent;
  return bytes;
}

comm::CommunicatorStats SoloCommunicator::stats() const {
  comm::CommunicatorStats stats;
  for (const auto& [name, operation] : operations_) stats.operations.push_back(operation);
  return stats;
}

absl::StatusOr<std::unique_ptr<Pending>> SoloCommunicator::StartAllGather(const TensorView& send,
                                                                          const TensorView& recv,
                                                                          Stream& stream) {
  Count("all_gather", size_ - 1, Bytes(send) * (size_ - 1));
  Fill(send, recv, stream);
  return std::make_unique<Done>();
}

absl::Status SoloCommunicator::AllGather(const TensorView& send, const TensorView& recv,
                                         Stream& stream) {
  return StartAllGather(send, recv, stream).status();
}

absl::Status SoloCommunicator::AllGatherV(const TensorView& send, const TensorView& recv,
                                          std::span<const int64_t>, Stream& stream) {
  Count("all_gather_v", size_ - 1, Bytes(send) * (size_ - 1));
  Fill(send, recv, stream);
  return absl::OkStatus();
}

absl::Status SoloCommunicator::AllReduce(const TensorView& data, comm::ReduceOp, Stream&) {
  Count("all_reduce", 2 * (size_ - 1), 2 * Bytes(data) / size_ * (size_ - 1));
  return absl::OkStatus();
}

absl::Status SoloCommunicator::AllToAll(const TensorView& send, const TensorView& recv,
                                        Stream& stream) {
  Count("all_to_all", size_ - 1, Bytes(send) / size_ * (size_ - 1));
  Fill(send, recv, stream);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Pending>> SoloCommunicator::StartSendRecv(const TensorView& send,
                                                                         int,
                                                                         const TensorView& recv,
                                                                         int, Stream& stream) {
  Count("send_recv", 1, Bytes(send));
  Fill(send, recv, stream);
  return std::make_unique<Done>();
}

absl::Status SoloCommunicator::SendRecv(const TensorView& send, int target, const TensorView& recv,
                                        int source, Stream& stream) {
  return StartSendRecv(send, target, recv, source, stream).status();
}

absl::Status SoloCommunicator::Broadcast(const TensorView& data, int root, Stream&) {
  if (root == rank_) Count("broadcast", size_ - 1, Bytes(data) * (size_ - 1));
  return absl::OkStatus();
}

}  // namespace apb::bench
