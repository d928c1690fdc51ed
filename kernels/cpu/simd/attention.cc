// Segmented FlashAttention on tiles. Keys are packed in blocks, once for each call. A row is a
// (token, query head of the group) pair, so that all query heads of a KV head share its packed
// keys. The softmax state is float.
#include <omp.h>

#include "kernels/cpu/simd/attention_unit.h"
#include "kernels/cpu/simd/kernels.h"

namespace apb::kernels::APB_ISA {
namespace {

// Packed keys and values of the KV heads that are attended to together take at most this much
// memory.
constexpr int64_t kPackedBytes = int64_t{256} << 20;

template <typename Tiles, typename T, typename O>
class Prefill {
 public:
  explicit Prefill(const AttentionArgs& args)
      : args_(args),
        segments_(args.keys.data()),
        tokens_(args.q.shape[0]),
        heads_(static_cast<int>(args.q.shape[1])),
        d_(static_cast<int>(args.q.shape[2])),
        dp_(static_cast<int>(RoundUp(d_, 32))) {
    kv_heads_ = 1;
    for (int s = 0; s < SegmentCount(); ++s) {
      if (segments_[s].k.shape[0] > 0) kv_heads_ = static_cast<int>(segments_[s].k.shape[1]);
      block_count_ += CeilDiv(segments_[s].k.shape[0], Block::kKeys);
    }
    if (block_count_ == 0) kv_heads_ = heads_;
    group_ = heads_ / kv_heads_;
    unit_tokens_ = static_cast<int>(Max(1, Unit::kUnitRows / group_));
    // No unit crosses the border of the row groups.
    first_group_units_ = CeilDiv(args.group_split, unit_tokens_);
    units_ = first_group_units_ + CeilDiv(tokens_ - args.group_split, unit_tokens_);
  }

  bool Run(int threads, Scratch& scratch) {
    const int64_t block_bytes = 2 * Block::Elements(dp_) * sizeof(Elem) + kHeaderBytes;
    const int64_t head_bytes = Max(1, block_count_ * block_bytes);
    const int64_t heads = Max(1, Min(kv_heads_, kPackedBytes / head_bytes));
    const int64_t unit_bytes = RoundUp(Unit::Bytes(dp_), 64);
    char* memory = static_cast<char*>(
        scratch.Reserve(threads * unit_bytes + heads * head_bytes + block_count_ * sizeof(Source)));
    if (memory == nullptr) return false;
    headers_ = memory + threads * unit_bytes;
    packed_ = reinterpret_cast<Elem*>(headers_ + heads * block_count_ * kHeaderBytes);
    sources_ = reinterpret_cast<Source*>(headers_ + heads * head_bytes);
    ListBlocks();
    for (int64_t head = 0; head < kv_heads_; head += heads)
      RunHeads(head, Min(heads, kv_heads_ - head), memory, unit_bytes, threads);
    return true;
  }

 private:
  using Elem = typename Tiles::Elem;
  using Unit = AttentionUnit<Tiles>;
  using Block = PackedBlock<Tiles>;
  static constexpr int64_t kHeaderBytes = (sizeof(Block) + 63) / 64 * 64;

  // The origin of a block's keys.
  struct Source {
    int segment;
    int keys;
    int64_t begin;
  };

  int SegmentCount() const { return static_cast<int>(args_.keys.size()); }

  void ListBlocks() {
    int64_t n = 0;
    for (int s = 0; s < SegmentCount(); ++s) {
      for (int64_t b = 0; b < segments_[s].k.shape[0]; b += Block::kKeys) {
        sources_[n++] = {s, static_cast<int>(Min(Block::kKeys, segments_[s].k.shape[0] - b)), b};
      }
    }
  }

  Block& BlockAt(int64_t head, int64_t block) const {
    return *reinterpret_cast<Block*>(headers_ + (head * block_count_ + block) * kHeaderBytes);
  }

  // Attends with KV heads [first, first + count), whose blocks are numbered from 0.
  void RunHeads(int64_t first, int64_t count, char* unit_memory, int64_t unit_bytes, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count * block_count_; ++i) Pack(first, i);

      Tiles::Begin();
      Unit unit;
      unit.Place(unit_memory + omp_get_thread_num() * unit_bytes, d_);
      unit.scale_log2 = args_.scale * kLog2e;
      // The last units of a causal prompt see the most keys, so they go first.
#pragma omp for schedule(dynamic, 1)
      for (int64_t w = 0; w < units_ * count; ++w)
        Attend(first, w % count, units_ - 1 - w / count, unit);
      Tiles::End();
    }
  }

  void Pack(int64_t first_head, int64_t index) const {
    const Source& source = sources_[index % block_count_];
    const int64_t head = first_head + index / block_count_;
    const KeySegment& segment = segments_[source.segment];
    Block& block = BlockAt(0, index);
    block.k = packed_ + 2 * Block::Elements(dp_) * index;
    block.v = block.k + Block::Elements(dp_);
    const T* k_rows[Block::kKeys];
    const T* v_rows[Block::kKeys];
    for (int r = 0; r < source.keys; ++r) {
      k_rows[r] = static_cast<const T*>(segment.k.data) + (source.begin + r) * segment.k.stride[0] +
                  head * segment.k.stride[1];
      v_rows[r] = static_cast<const T*>(segment.v.data) + (source.begin + r) * segment.v.stride[0] +
                  head * segment.v.stride[1];
    }
    PackRows<Tiles, T>(k_rows, v_rows, source.keys, d_, dp_, block);
    const int32_t* positions = static_cast<const int32_t*>(segment.positions.data);
    block.SetPositions(positions == nullptr ? nullptr : positions + source.begin, source.keys);
  }

  // Computes unit u of KV head first_head + head over all blocks that it may see.
  void Attend(int64_t first_head, int64_t head, int64_t u, Unit& unit) const {
    const int row_group = u < first_group_units_ ? 0 : 1;
    const int64_t first = row_group == 0
                              ? u * unit_tokens_
                              : args_.group_split + (u - first_group_units_) * unit_tokens_;
    const int64_t last = Min(first + unit_tokens_, row_group == 0 ? args_.group_split : tokens_);
    const int64_t first_query_head = (first_head + head) * group_;
    for (int64_t t = first; t < last; ++t) {
      for (int h = 0; h < group_; ++h) {
        unit.SetRow(static_cast<int>((t - first) * group_ + h),
                    static_cast<const T*>(args_.q.data) + t * args_.q.stride[0] +
                        (first_query_head + h) * args_.q.stride[1],
                    static_cast<const int32_t*>(args_.q_positions.data)[t]);
      }
    }
    unit.Start(static_cast<int>((last - first) * group_));
    for (int64_t b = 0; b < block_count_; ++b) {
      const Visibility visibility = segments_[sources_[b].segment].visible_to_group[row_group];
      if (visibility == Visibility::kNone) continue;
      unit.Add(BlockAt(head, b), visibility == Visibility::kAll);
    }
    for (int64_t t = first; t < last; ++t) {
      for (int h = 0; h < group_; ++h) {
        const int row = static_cast<int>((t - first) * group_ + h);
        const int64_t q_head = first_query_head + h;
        unit.WriteRow(row, static_cast<O*>(args_.out.data) + t * args_.out.stride[0] +
                               q_head * args_.out.stride[1]);
        if (args_.lse.data != nullptr)
          static_cast<float*>(args_.lse.data)[t * args_.lse.stride[0] + q_head] =
              unit.LogSumExp(row);
      }
    }
  }

  const AttentionArgs& args_;
  const KeySegment* segments_;
  const int64_t tokens_;
  const int heads_, d_, dp_;
  int kv_heads_, group_, unit_tokens_;
  int64_t block_count_ = 0, first_group_units_, units_;
  char* headers_ = nullptr;
  Elem* packed_ = nullptr;
  Source* sources_ = nullptr;
};

}  // namespace

bool Run(const AttentionArgs& args, int threads, Scratch& scratch) {
  if (args.q.dtype != DType::kBF16)
    return Prefill<FloatTiles, float, float>(args).Run(threads, scratch);
  if (args.out.dtype == DType::kBF16)
    return Prefill<TilesForBf16, uint16_t, uint16_t>(args).Run(threads, scratch);
  return Prefill<TilesForBf16, uint16_t, float>(args).Run(threads, scratch);
}

}  // namespace apb::kernels::APB_ISA
