#include "tests/kernels/host_operands.h"

#include <gtest/gtest.h>

#include <list>
#include <vector>

namespace apb::kernels {
namespace {

constexpr size_t kGuard = 256;
constexpr std::byte kGuardByte{0xa5};

// The operands of one operation.
class Operands {
 public:
  Operands(Backend& device, Stream& stream) : device_(device), stream_(stream) {}

  // Downloads what the operation wrote and looks at the guards.
  ~Operands() {
    for (Operand& operand : all_) {
      std::vector<std::byte> bytes(operand.buffer.size_bytes());
      Transfer(operand.buffer.data(), bytes.data(), bytes.size());
      if (!stream_.Synchronize().ok()) return;  // the test sees it
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

  TensorView In(const TensorView& view) { return Place(view, false); }
  TensorView Out(const TensorView& view) { return Place(view, true); }
  template <typename T>
  const T* In(const T* values, int64_t count) {
    static_assert(sizeof(T) % 4 == 0);
    if (values == nullptr || count <= 0) return nullptr;
    return In(TensorView::Contiguous(const_cast<T*>(values), DType::kI32,
                                     {count * static_cast<int64_t>(sizeof(T)) / 4}))
        .template as<const T>();
  }

 private:
  struct Operand {
    std::byte* host;
    size_t span;   // bytes from the first to the last element
    size_t begin;  // of the operand in the buffer
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
    for (Operand& operand : all_) {  // in place, or in the place of a part
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
    stream_.Synchronize().IgnoreError();  // `bytes` ends here
    placed.data = static_cast<std::byte*>(buffer->data()) + begin;
    all_.push_back({host, span, begin, written, *std::move(buffer)});
    return placed;
  }

  void Transfer(void* from, void* to, size_t bytes) {
    // As two-byte numbers, the smallest there are.
    const auto view = [&](void* data) {
      return TensorView::Contiguous(data, DType::kBF16, {static_cast<int64_t>(bytes / 2)});
    };
    device_.Copy(view(from), view(to), stream_);
  }

  Backend& device_;
  Stream& stream_;
  std::list<Operand> all_;
};

}  // namespace

void HostOperands::Copy(const TensorView& source, const TensorView& target, Stream& stream) {
  Operands o(*device_, stream);
  device_->Copy(o.In(source), o.Out(target), stream);
}
void HostOperands::Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                             Stream& stream) {
  Operands o(*device_, stream);
  device_->Embedding(o.In(table), o.In(ids), o.Out(out), stream);
}
void HostOperands::RmsNorm(const TensorView& x, const TensorView& weight, float epsilon,
                           const TensorView& out, Stream& stream) {
  Operands o(*device_, stream);
  device_->RmsNorm(o.In(x), o.In(weight), epsilon, o.Out(out), stream);
}
void HostOperands::Linear(const LinearArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  device_->Linear({.x = o.In(args.x),
                   .weight = o.In(args.weight),
                   .bias = o.In(args.bias),
                   .out = o.Out(args.out),
                   .accumulate = args.accumulate},
                  stream);
}
void HostOperands::Rope(const RopeArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  device_->Rope(
      {.x = o.Out(args.x),
       .positions = o.In(args.positions),
       .inv_freq = o.In(args.inv_freq),
       .attention_factor = args.attention_factor,
       .store = {o.In(args.store.slots), o.Out(args.store.k_cache), o.Out(args.store.v_cache)},
       .v = o.In(args.v),
       .store_begin = args.store_begin},
      stream);
}
void HostOperands::SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
                           Stream& stream) {
  Operands o(*device_, stream);
  device_->SiluMul(o.In(gate), o.In(up), o.Out(out), stream);
}
void HostOperands::Accumulate(const TensorView& x, const TensorView& out, Stream& stream) {
  Operands o(*device_, stream);
  device_->Accumulate(o.In(x), o.Out(out), stream);
}
void HostOperands::AccumulateRmsNorm(const TensorView& x, const TensorView& residual,
                                     const TensorView& weight, float epsilon, const TensorView& out,
                                     Stream& stream) {
  Operands o(*device_, stream);
  device_->AccumulateRmsNorm(o.In(x), o.Out(residual), o.In(weight), epsilon, o.Out(out), stream);
}
void HostOperands::Attention(const AttentionArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  std::vector<KeySegment> keys(args.keys.begin(), args.keys.end());
  for (KeySegment& segment : keys) {
    segment.k = o.In(segment.k);
    segment.v = o.In(segment.v);
    segment.positions = o.In(segment.positions);
  }
  AttentionArgs placed = args;
  placed.q = o.In(args.q);
  placed.q_positions = o.In(args.q_positions);
  placed.keys = keys;
  placed.out = o.Out(args.out);
  placed.lse = o.Out(args.lse);
  device_->Attention(placed, stream);
}
void HostOperands::PagedAttention(const PagedAttentionArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  const int64_t block = args.k_cache.shape[2];
  std::vector<PagedSequence> sequences(args.sequences, args.sequences + args.rows.size());
  for (PagedSequence& sequence : sequences) {
    sequence.block_table = o.In(sequence.block_table, (sequence.slot_count + block - 1) / block);
    sequence.slot_positions =
        o.In(sequence.slot_positions, sequence.slot_count - sequence.causal_begin);
  }
  PagedAttentionArgs placed = args;
  placed.q = o.In(args.q);
  placed.q_positions = o.In(args.q_positions);
  placed.k_cache = o.In(args.k_cache);
  placed.v_cache = o.In(args.v_cache);
  placed.sequences =
      o.In(TensorView::Contiguous(
               sequences.data(), DType::kI64,
               {static_cast<int64_t>(sequences.size() * sizeof(PagedSequence) / sizeof(int64_t))}))
          .as<const PagedSequence>();
  placed.out = o.Out(args.out);
  placed.lse = o.Out(args.lse);
  device_->PagedAttention(placed, stream);
}
void HostOperands::MergePartials(const TensorView& outs, const TensorView& lses,
                                 const TensorView& out, const TensorView& lse, Stream& stream) {
  Operands o(*device_, stream);
  // The whole first: results may be in a part's place.
  const TensorView placed_outs = o.In(outs), placed_lses = o.In(lses);
  device_->MergePartials(placed_outs, placed_lses, o.Out(out), o.Out(lse), stream);
}
void HostOperands::ReadFromCache(const TensorView& slots, const TensorView& k_cache,
                                 const TensorView& v_cache, const TensorView& k,
                                 const TensorView& v, Stream& stream) {
  Operands o(*device_, stream);
  device_->ReadFromCache(o.In(slots), o.In(k_cache), o.In(v_cache), o.Out(k), o.Out(v), stream);
}
void HostOperands::MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                               Stream& stream) {
  Operands o(*device_, stream);
  device_->MaxPoolRows(o.In(scores), window, o.Out(out), stream);
}
void HostOperands::KeyScores(const KeyScoreArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  device_->KeyScores({.k = o.In(args.k),
                      .query = o.In(args.query),
                      .scale = args.scale,
                      .scores = o.Out(args.scores)},
                     stream);
}
void HostOperands::TopKPerHead(const TopKPerHeadArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  TopKPerHeadArgs placed = args;
  placed.scores = o.In(args.scores);
  placed.indices = o.Out(args.indices);
  device_->TopKPerHead(placed, stream);
}
void HostOperands::GatherRowsPerHead(const TensorView& x, const TensorView& indices,
                                     const TensorView& out, Stream& stream) {
  Operands o(*device_, stream);
  device_->GatherRowsPerHead(o.In(x), o.In(indices), o.Out(out), stream);
}
void HostOperands::Sample(const SampleArgs& args, Stream& stream) {
  Operands o(*device_, stream);
  SampleArgs placed = args;
  placed.logits = o.Out(args.logits);
  placed.rows = o.In(args.rows, args.logits.rows());
  placed.edits = o.In(args.edits, args.edit_count);
  placed.tokens = o.Out(args.tokens);
  device_->Sample(placed, stream);
}

}  // namespace apb::kernels
