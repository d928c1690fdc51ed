// Writes rows to the slots of a paged cache, and reads them.
#include <cstring>

#include "kernels/cpu/operations_on_cpu.h"
#include "kernels/cpu/row_address.h"

namespace apb::kernels {

namespace {

// The address of head `head` of a cache slot.
std::byte* SlotAt(const TensorView& cache, int64_t slot, int64_t head) {
  const int64_t block = slot / cache.shape[2], offset = slot % cache.shape[2];
  return static_cast<std::byte*>(cache.data) +
         (block * cache.stride[0] + head * cache.stride[1] + offset * cache.stride[2]) *
             static_cast<int64_t>(SizeOf(cache.dtype));
}

}  // namespace

void AppendToCacheOnCpu(const TensorView& k, const TensorView& v, const TensorView& slots,
                        const TensorView& k_cache, const TensorView& v_cache, int threads) {
  const int64_t heads = k.shape[1];
  const size_t bytes = k.shape[2] * SizeOf(k.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (k.shape[0] > 64)
  for (int64_t t = 0; t < k.shape[0]; ++t) {
    const int64_t slot = slots.as<int64_t>()[t];
    if (slot < 0) continue;
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(SlotAt(k_cache, slot, h), RowAt(k, t, h), bytes);
      std::memcpy(SlotAt(v_cache, slot, h), RowAt(v, t, h), bytes);
    }
  }
}

void OnCpu(const ReadFromCacheArgs& args, int threads) {
  const TensorView &slots = args.slots, &k = args.k, &v = args.v;
  const int64_t heads = k.shape[1];
  const size_t bytes = k.shape[2] * SizeOf(k.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (k.shape[0] > 64)
  for (int64_t t = 0; t < k.shape[0]; ++t) {
    const int64_t slot = slots.as<int64_t>()[t];
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(RowAt(k, t, h), SlotAt(args.k_cache, slot, h), bytes);
      std::memcpy(RowAt(v, t, h), SlotAt(args.v_cache, slot, h), bytes);
    }
  }
}

}  // namespace apb::kernels
