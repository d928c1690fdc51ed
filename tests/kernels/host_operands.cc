// Uploads, guards and downloads the operands of operations.
#include "tests/kernels/host_operands.h"

#include <gtest/gtest.h>

#include <list>
#include <variant>
#include <vector>

namespace apb::kernels {
namespace {

constexpr size_t kGuard = 256;
constexpr std::byte kGuardByte{0xa5};

// The operands of one operation, on the device.
class Operands : public OperandVisitor {
 public:
  Operands(Backend& device, Stream& stream) : device_(device), stream_(stream) {}

  // Downloads the written operands and checks the guards.
  ~Operands() override {
    for (Operand& operand : all_) {
      std::vector<std::byte> bytes(operand.buffer.size_bytes());
      Transfer(operand.buffer.data(), bytes.data(), bytes.size());
      if (!stream_.Synchronize().ok()) return;  // the test checks the stream
      const size_t end = operand.begin + operand.span;
      for (size_t i = 0; i < bytes.size(); ++i) {
        if (i == operand.begin) i = end;
        if (i < bytes.size() && bytes[i] != kGuardByte) {
          ADD_FAILURE() << "byte " << static_cast<int64_t>(i - operand.begin) << " was written, "
                        << operand.span << " belong to the operand";
          break;
        }
      }
      if (operand.written)
        std::copy(bytes.begin() + operand.begin, bytes.begin() + end, operand.host);
    }
  }

  using OperandVisitor::Reads;
  void Reads(TensorView& view) override { view = Place(view, false); }
  void Writes(TensorView& view) override { view = Place(view, true); }
  void Sequences(PagedAttentionArgs& args) override {
    const int64_t block = args.k_cache.shape[2];
    sequences_.assign(args.sequences, args.sequences + args.rows.size());
    for (PagedSequence& sequence : sequences_) {
      Reads(sequence.block_table, (sequence.slot_count + block - 1) / block);
      Reads(sequence.slot_positions, sequence.slot_count - sequence.causal_begin);
    }
    args.sequences = sequences_.data();
    OperandVisitor::Sequences(args);
  }

 private:
  struct Operand {
    std::byte* host;
    size_t span;   // bytes from the first to the last element
    size_t begin;  // offset of the operand in the buffer
    bool written;
    Buffer buffer;
  };

  TensorView Place(const TensorView& view, bool written) {
    if (!view.present()) return view;
    size_t span = 0;
    if (view.numel() > 0) {
      int64_t last = 0;
      for (int i = 0; i < view.rank; ++i) last += (view.shape[i] - 1) * view.stride[i];
      span = (last + 1) * SizeOf(view.dtype);
    }
    std::byte* host = view.as<std::byte>();
    TensorView placed = view;
    for (Operand& operand : all_) {  // memory that an earlier operand has already
      if (host < operand.host || host + span > operand.host + operand.span) continue;
      operand.written = operand.written || written;
      placed.data =
          static_cast<std::byte*>(operand.buffer.data()) + operand.begin + (host - operand.host);
      return placed;
    }
    const size_t begin = kGuard + reinterpret_cast<uintptr_t>(host) % kGuard;
    absl::StatusOr<Buffer> buffer = device_.Allocate(begin + span + kGuard);
    if (!buffer.ok()) {
      ADD_FAILURE() << buffer.status();
      return view;
    }
    std::vector<std::byte> bytes(buffer->size_bytes(), kGuardByte);
    std::copy(host, host + span, bytes.begin() + begin);
    Transfer(bytes.data(), buffer->data(), bytes.size());
    stream_.Synchronize().IgnoreError();  // the copy reads `bytes`
    placed.data = static_cast<std::byte*>(buffer->data()) + begin;
    all_.push_back({host, span, begin, written, *std::move(buffer)});
    return placed;
  }

  void Transfer(void* from, void* to, size_t bytes) {
    // As numbers of two bytes, the smallest element type.
    const auto view = [&](void* data) {
      return TensorView::Contiguous(data, DType::kBF16, {static_cast<int64_t>(bytes / 2)});
    };
    device_.Copy(view(from), view(to), stream_);
  }

  Backend& device_;
  Stream& stream_;
  std::list<Operand> all_;
  std::vector<PagedSequence> sequences_;
};

}  // namespace

void HostOperands::Do(Operation operation, Stream& stream) {
  std::visit(
      [&](const auto* args) {
        auto placed = *args;
        Operands operands(*device_, stream);
        placed.VisitOperands(operands);
        device_->Run(placed, stream);
      },
      operation);
}

}  // namespace apb::kernels
