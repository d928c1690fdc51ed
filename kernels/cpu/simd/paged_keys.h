// Attention over the paged cache: the tasks of threads, and the addresses of a sequence's keys.
#pragma once

#include "kernels/attention_args.h"
#include "kernels/cpu/simd/vector.h"

namespace apb::kernels::APB_ISA {

// One split of a sequence's keys for one KV head. Its partial results are [rows][d + 1] floats
// (out, lse) from element `partial` of the memory for partial results on.
struct PagedTask {
  int sequence;
  int head;
  int64_t slot_begin, slot_end;
  int64_t partial;
};

// The rows of one KV head in one cache, by slot of a sequence.
template <typename T>
struct PagedRowsOf {
  const T* cache;
  int64_t block_stride, row_stride;
  uint32_t block_size;
  const int32_t* table;

  PagedRowsOf(const TensorView& view, const PagedSequence& sequence, int head)
      : cache(static_cast<const T*>(view.data) + head * view.stride[1]),
        block_stride(view.stride[0]),
        row_stride(view.stride[2]),
        block_size(static_cast<uint32_t>(view.shape[2])),
        table(sequence.block_table) {}

  // Writes the addresses of the rows of slots [begin, begin + count).
  void List(int64_t begin, int count, const T** rows) const {
    const uint32_t first = static_cast<uint32_t>(begin);
    const int32_t* block = table + first / block_size;
    uint32_t offset = first % block_size;
    for (int i = 0; i < count; ++block) {
      const T* row = cache + *block * block_stride + offset * row_stride;
      for (; offset < block_size && i < count; ++offset, row += row_stride) rows[i++] = row;
      offset = 0;
    }
  }
};

}  // namespace apb::kernels::APB_ISA
