// Attention over the paged cache. The keys of long sequences are split, so that all threads have
// work. The results of the splits are combined in order.
#include <omp.h>

#include "kernels/cpu/simd/attention_unit.h"
#include "kernels/cpu/simd/few_rows.h"
#include "kernels/cpu/simd/few_rows_amx.h"
#include "kernels/cpu/simd/kernels.h"

namespace apb::kernels::APB_ISA {
namespace {

// Slots of a split, a multiple of kChunkKeys. A sequence has at most 16 splits.
int64_t SplitSlots(int64_t slots) {
  const int64_t splits = slots <= 1024 ? 1 : Min((slots + 1023) / 1024, 16);
  return RoundUp((slots + splits - 1) / splits, kChunkKeys);
}
int64_t NumSplits(int64_t slots) { return slots == 0 ? 0 : CeilDiv(slots, SplitSlots(slots)); }

template <typename Tiles, typename T, typename O>
class Paged {
 public:
  explicit Paged(const PagedAttentionArgs& args)
      : args_(args),
        d_(static_cast<int>(args.q.shape[2])),
        kv_heads_(static_cast<int>(args.k_cache.shape[1])),
        group_(static_cast<int>(args.q.shape[1]) / kv_heads_),
        sequences_(static_cast<int>(args.rows.size())) {}

  bool Run(int threads, Scratch& scratch) {
    int64_t partial_floats = 0;
    for (int i = 0; i < sequences_; ++i) {
      const int64_t splits = NumSplits(args_.sequences[i].slot_count);
      task_count_ += splits * kv_heads_;
      partial_floats += splits * kv_heads_ * SplitFloats(i);
    }
    const int64_t task_bytes = RoundUp(task_count_ * sizeof(PagedTask), 64);
    const int64_t thread_bytes = ThreadBytes();
    char* memory = static_cast<char*>(
        scratch.Reserve(threads * thread_bytes + task_bytes + partial_floats * 4));
    if (memory == nullptr) return false;
    tasks_ = reinterpret_cast<PagedTask*>(memory + threads * thread_bytes);
    partials_ = reinterpret_cast<float*>(reinterpret_cast<char*>(tasks_) + task_bytes);
    ListTasks();
#pragma omp parallel num_threads(threads)
    RunTasks(memory + omp_get_thread_num() * thread_bytes);
    CombineSplits(threads);
    return true;
  }

 private:
  using Elem = typename Tiles::Elem;
  using Unit = AttentionUnit<Tiles>;
  using Block = PackedBlock<Tiles>;

  // Floats of the partial results of one split and KV head of a sequence.
  int64_t SplitFloats(int sequence) const { return args_.rows[sequence].count * group_ * (d_ + 1); }
  int64_t ThreadBytes() const {
    const int64_t dp = RoundUp(d_, 32);
    int64_t bytes = Unit::Bytes(dp) + 2 * Block::Elements(dp) * sizeof(Elem);
    bytes = Max(bytes, sizeof(FewRows));
#ifdef __AMX_BF16__
    bytes = Max(bytes, sizeof(AmxFewRows));
#endif
    return RoundUp(bytes, 64);
  }

  void ListTasks() {
    int64_t t = 0, offset = 0;
    for (int i = 0; i < sequences_; ++i) {
      const int64_t slots = args_.sequences[i].slot_count, step = SplitSlots(slots);
      for (int head = 0; head < kv_heads_; ++head) {
        for (int64_t s = 0; s < slots; s += step) {
          tasks_[t++] = {i, head, s, Min(s + step, slots), offset};
          offset += SplitFloats(i);
        }
      }
    }
  }

  void RunTasks(char* memory) {
    Unit unit;
    unit.Place(memory, d_);
    unit.scale_log2 = args_.scale * kLog2e;
    Block block;
    block.k = reinterpret_cast<Elem*>(memory + Unit::Bytes(unit.dp));
    block.v = block.k + Block::Elements(unit.dp);
    Tiles::Begin();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < task_count_; ++i) {
      const int64_t rows = args_.rows[tasks_[i].sequence].count * group_;
#ifdef __AMX_BF16__
      if (sizeof(T) == 2 && rows <= kFewRows && d_ % 32 == 0) {
        RunAmxFewRows(args_, tasks_[i], *reinterpret_cast<AmxFewRows*>(memory), partials_, group_,
                      d_);
        continue;
      }
#endif
      if (FewRows::Takes(rows, d_)) {
        reinterpret_cast<FewRows*>(memory)->Run<T>(args_, tasks_[i], partials_, group_);
        continue;
      }
      RunUnits(tasks_[i], unit, block);
    }
    Tiles::End();
  }

  // For many rows. The keys are packed once for each unit of rows.
  void RunUnits(const PagedTask& task, Unit& unit, Block& block) {
    const PagedRows& tokens = args_.rows[task.sequence];
    const int64_t rows = tokens.count * group_;
    for (int64_t first = 0; first < rows; first += Unit::kUnitRows) {
      const int count = static_cast<int>(Min(Unit::kUnitRows, rows - first));
      for (int r = 0; r < count; ++r) {
        const int64_t t = tokens.begin + (first + r) / group_,
                      h = task.head * group_ + (first + r) % group_;
        unit.SetRow(
            r, static_cast<const T*>(args_.q.data) + t * args_.q.stride[0] + h * args_.q.stride[1],
            static_cast<const int32_t*>(args_.q_positions.data)[t]);
      }
      unit.Start(count);
      AddKeys(task, unit, block);
      for (int r = 0; r < count; ++r) {
        float* out = partials_ + task.partial + (first + r) * (d_ + 1);
        unit.WriteRow(r, out);
        out[d_] = unit.LogSumExp(r);
      }
    }
  }

  // Packs all keys of the task block by block, and adds them to the unit.
  void AddKeys(const PagedTask& task, Unit& unit, Block& block) {
    const PagedSequence& sequence = args_.sequences[task.sequence];
    const PagedRowsOf<T> keys(args_.k_cache, sequence, task.head);
    const PagedRowsOf<T> values(args_.v_cache, sequence, task.head);
    for (int64_t s = task.slot_begin; s < task.slot_end;) {
      const bool all = s < sequence.causal_begin;
      int64_t end = Min(s + Block::kKeys, task.slot_end);
      if (all) end = Min(end, sequence.causal_begin);
      const int count = static_cast<int>(end - s);
      const T* k_rows[Block::kKeys];
      const T* v_rows[Block::kKeys];
      keys.List(s, count, k_rows);
      values.List(s, count, v_rows);
      PackRows<Tiles, T>(k_rows, v_rows, count, d_, unit.dp, block);
      block.SetPositions(all ? nullptr : sequence.slot_positions + (s - sequence.causal_begin),
                         count);
      unit.Add(block, all);
      s = end;
    }
  }

  void CombineSplits(int threads) {
    int64_t base = 0;
    for (int i = 0; i < sequences_; ++i) {
      const int64_t splits = NumSplits(args_.sequences[i].slot_count), stride = SplitFloats(i);
      const int64_t rows = args_.rows[i].count * group_;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * kv_heads_ * splits > 64)
      for (int64_t r = 0; r < rows * kv_heads_; ++r) {
        const int64_t head = r / rows, row = r % rows;
        const int64_t token = args_.rows[i].begin + row / group_,
                      q_head = head * group_ + row % group_;
        float* lse = args_.lse.data == nullptr ? nullptr
                                               : static_cast<float*>(args_.lse.data) +
                                                     token * args_.lse.stride[0] + q_head;
        const float* part = partials_ + base + head * splits * stride + row * (d_ + 1);
        CombineParts(part, stride, part + d_, stride, splits, d_,
                     static_cast<O*>(args_.out.data) + token * args_.out.stride[0] +
                         q_head * args_.out.stride[1],
                     lse);
      }
      base += stride * splits * kv_heads_;
    }
  }

  const PagedAttentionArgs& args_;
  const int d_, kv_heads_, group_, sequences_;
  int64_t task_count_ = 0;
  PagedTask* tasks_ = nullptr;
  float* partials_ = nullptr;
};

}  // namespace

bool Run(const PagedAttentionArgs& args, int threads, Scratch& scratch) {
  if (args.q.dtype != DType::kBF16)
    return Paged<FloatTiles, float, float>(args).Run(threads, scratch);
  if (args.out.dtype == DType::kBF16)
    return Paged<TilesForBf16, uint16_t, uint16_t>(args).Run(threads, scratch);
  return Paged<TilesForBf16, uint16_t, float>(args).Run(threads, scratch);
}

}  // namespace apb::kernels::APB_ISA
