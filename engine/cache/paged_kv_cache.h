// The KV cache of a rank: its bytes, and the block tables of its sequences. Keys are stored after
// RoPE, so the position of a slot is needed only for masking. Owner: the step thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cache/block_pool.h"
#include "kernels/backend.h"

namespace apb::cache {

struct KvCacheShape {
  int layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 32;  // tokens
  int64_t block_count = 0;  // of this rank
  kernels::DType dtype = kernels::DType::kBF16;
  int64_t bytes_per_block() const {
    return int64_t{2} * layers * kv_heads * head_dim * block_size *
           static_cast<int64_t>(kernels::SizeOf(dtype));
  }
};

// One sequence's KV on this rank. Slot i lies in block blocks[i / block_size].
struct SequenceKv {
  std::vector<int32_t> blocks;
  std::vector<int32_t>
      positions;  // of the token in each used slot; size() is the number of used slots
  int64_t slot_count() const { return static_cast<int64_t>(positions.size()); }
};

class PagedKvCache {
 public:
  // Allocates all blocks at once. kResourceExhausted if they do not fit; kInvalidArgument if the
  // shape is empty or has more than INT32_MAX blocks.
  static absl::StatusOr<std::unique_ptr<PagedKvCache>> Create(const KvCacheShape& shape,
                                                              kernels::Backend& backend);
  // Appends slots for tokens at these positions and returns their slot numbers (block * block_size
  // + offset). kResourceExhausted: too few free blocks; nothing has changed.
  absl::StatusOr<std::vector<int64_t>> Reserve(SequenceKv& sequence,
                                               std::span<const int32_t> positions);
  // The slot numbers of the sequence's tokens [begin, end) on this rank, as Reserve returned them.
  std::vector<int64_t> Slots(const SequenceKv& sequence, int64_t begin, int64_t end) const;
  // A new sequence with the tokens of `from` at positions below `end`. Full blocks are shared and a
  // partly filled block is copied, so both sequences may grow. Positions of `from` must ascend.
  // kResourceExhausted if there is no block for the copy.
  absl::StatusOr<SequenceKv> Fork(const SequenceKv& from, int32_t end, kernels::Stream& stream);
  // Frees the blocks of the sequence, which is empty afterwards.
  void Release(SequenceKv& sequence);

  // Views [block_count, kv_heads, block_size, head_dim] of one layer.
  kernels::TensorView keys(int layer) const;
  kernels::TensorView values(int layer) const;
  const KvCacheShape& shape() const { return shape_; }
  const BlockPool& pool() const { return pool_; }

 private:
  PagedKvCache(const KvCacheShape& shape, kernels::Backend& backend, kernels::Buffer keys,
               kernels::Buffer values);
  KvCacheShape shape_;
  kernels::Backend& backend_;
  kernels::Buffer keys_;  // of all layers, one layer after another
  kernels::Buffer values_;
  BlockPool pool_;
};

}  // namespace apb::cache
