#include "tests/gpu/solo_communicator.h"

#include <algorithm>

#include "tests/engine/comm/communicator_decorator.h"

namespace apb::bench {

using kernels::Stream;
using kernels::TensorView;

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

absl::StatusOr<std::unique_ptr<comm::Pending>> SoloCommunicator::DoStart(const comm::Collective& c,
                                                                         Stream& stream) {
  comm::CommunicatorStats::Operation& operation = operations_[c.name()];
  operation.name = c.name();
  ++operation.calls;
  operation.bytes_sent += c.BytesSent(rank_, size_);
  messages_ += c.kind == comm::Collective::Kind::kSendRecv ? 1 : size_ - 1;
  Fill(c.send, c.recv, stream);
  return std::make_unique<comm::DonePending>();
}

}  // namespace apb::bench
