// Copies, and reads of rows by index.
#include <cstring>

#include "kernels/cpu/operations_on_cpu.h"
#include "kernels/cpu/row_address.h"

namespace apb::kernels {

void OnCpu(const CopyArgs& args, int threads) {
  const TensorView &source = args.source, &target = args.target;
  // Rows of all leading dimensions; the last one is contiguous.
  const int last = source.rank - 1;
  if (source.numel() == 0) return;
  const int64_t rows = source.numel() / source.shape[last];
  const size_t size = SizeOf(source.dtype), bytes = source.shape[last] * size;
#pragma omp parallel for schedule(static) num_threads(threads) if (source.numel() > 65536)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t rest = r, from = 0, to = 0;
    for (int d = last - 1; d >= 0; --d) {
      const int64_t i = rest % source.shape[d];
      rest /= source.shape[d];
      from += i * source.stride[d];
      to += i * target.stride[d];
    }
    std::memcpy(static_cast<std::byte*>(target.data) + to * static_cast<int64_t>(size),
                static_cast<const std::byte*>(source.data) + from * static_cast<int64_t>(size),
                bytes);
  }
}

void OnCpu(const EmbeddingArgs& args, int threads) {
  const TensorView &table = args.table, &ids = args.ids, &out = args.out;
  const size_t bytes = table.shape[1] * SizeOf(table.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (ids.shape[0] > 64)
  for (int64_t t = 0; t < ids.shape[0]; ++t) {
    std::memcpy(RowAt(out, t), RowAt(table, ids.as<int32_t>()[t]), bytes);
  }
}

void OnCpu(const GatherRowsPerHeadArgs& args, int threads) {
  const TensorView &x = args.x, &indices = args.indices, &out = args.out;
  const size_t bytes = x.shape[2] * SizeOf(x.dtype);
  const int64_t heads = x.shape[1], count = indices.shape[1];
#pragma omp parallel for schedule(static) num_threads(threads) if (count > 64)
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(RowAt(out, i, h), RowAt(x, indices.as<int32_t>()[h * indices.stride[0] + i], h),
                  bytes);
    }
  }
}

}  // namespace apb::kernels
