#include "engine/cache/paged_kv_cache.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::cache {

PagedKvCache::PagedKvCache(const KvCacheShape& shape, kernels::Backend& backend,
                           kernels::Buffer keys, kernels::Buffer values)
    : shape_(shape),
      backend_(backend),
      keys_(std::move(keys)),
      values_(std::move(values)),
      pool_(static_cast<int32_t>(shape.block_count)) {}

absl::StatusOr<std::unique_ptr<PagedKvCache>> PagedKvCache::Create(const KvCacheShape& shape,
                                                                   kernels::Backend& backend) {
  if (shape.block_size <= 0 || shape.block_count <= 0 || shape.block_count > INT32_MAX ||
      shape.layers <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache of ", shape.block_count, " blocks of ",
                                                   shape.block_size, " tokens and ", shape.layers,
                                                   " layers"));
  }
  const size_t half = static_cast<size_t>(shape.bytes_per_block() / 2) * shape.block_count;
  APB_ASSIGN_OR_RETURN(kernels::Buffer keys, backend.Allocate(half));
  APB_ASSIGN_OR_RETURN(kernels::Buffer values, backend.Allocate(half));
  return std::unique_ptr<PagedKvCache>(
      new PagedKvCache(shape, backend, std::move(keys), std::move(values)));
}

absl::StatusOr<std::vector<int64_t>> PagedKvCache::Reserve(SequenceKv& sequence,
                                                           std::span<const int32_t> positions) {
  const int64_t before = sequence.slot_count(),
                after = before + static_cast<int64_t>(positions.size());
  const int64_t needed = (after + shape_.block_size - 1) / shape_.block_size;
  const int64_t extra = needed - static_cast<int64_t>(sequence.blocks.size());
  if (extra > 0) {
    APB_ASSIGN_OR_RETURN(const std::vector<int32_t> blocks, pool_.Allocate(extra));
    sequence.blocks.insert(sequence.blocks.end(), blocks.begin(), blocks.end());
  }
  sequence.positions.insert(sequence.positions.end(), positions.begin(), positions.end());
  return Slots(sequence, before, after);
}

std::vector<int64_t> PagedKvCache::Slots(const SequenceKv& sequence, int64_t begin,
                                         int64_t end) const {
  std::vector<int64_t> slots;
  slots.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    slots.push_back(sequence.blocks[i / shape_.block_size] * shape_.block_size +
                    i % shape_.block_size);
  }
  return slots;
}

absl::StatusOr<SequenceKv> PagedKvCache::Fork(const SequenceKv& from, int32_t end,
                                              kernels::Stream& stream) {
  const auto last = std::lower_bound(from.positions.begin(), from.positions.end(), end);
  SequenceKv fork;
  fork.positions.assign(from.positions.begin(), last);
  const int64_t full = fork.slot_count() / shape_.block_size;
  if (fork.slot_count() % shape_.block_size != 0) {
    APB_ASSIGN_OR_RETURN(fork.blocks, pool_.Allocate(1));
    const int32_t source = from.blocks[full], target = fork.blocks[0];
    for (int layer = 0; layer < shape_.layers; ++layer) {
      for (const kernels::TensorView& cache : {keys(layer), values(layer)})
        backend_.Copy(cache.Rows(source, source + 1), cache.Rows(target, target + 1), stream);
    }
  }
  const std::span<const int32_t> shared(from.blocks.data(), full);
  pool_.Share(shared);
  fork.blocks.insert(fork.blocks.begin(), shared.begin(), shared.end());
  return fork;
}

void PagedKvCache::Release(SequenceKv& sequence) {
  pool_.Free(sequence.blocks);
  sequence.blocks.clear();
  sequence.positions.clear();
}

kernels::TensorView PagedKvCache::keys(int layer) const {
  const size_t layer_bytes =
      static_cast<size_t>(shape_.bytes_per_block() / 2 / shape_.layers) * shape_.block_count;
  return kernels::TensorView::Contiguous(
      static_cast<std::byte*>(keys_.data()) + layer * layer_bytes, shape_.dtype,
      {shape_.block_count, shape_.kv_heads, shape_.block_size, shape_.head_dim});
}

kernels::TensorView PagedKvCache::values(int layer) const {
  kernels::TensorView view = keys(layer);
  view.data = static_cast<std::byte*>(values_.data()) +
              (static_cast<std::byte*>(view.data) - static_cast<std::byte*>(keys_.data()));
  return view;
}

}  // namespace apb::cache
