#include "engine/cache/block_pool.h"

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace apb::cache {

BlockPool::BlockPool(int32_t block_count) : users_(block_count, 0) {
  free_.reserve(block_count);
  for (int32_t id = block_count - 1; id >= 0; --id) free_.push_back(id);
}

absl::StatusOr<std::vector<int32_t>> BlockPool::Allocate(int64_t count) {
  if (count > free_count()) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: ", count, " blocks wanted, ",
                                                     free_count(), " of ", total_count(), " free"));
  }
  std::vector<int32_t> blocks(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  for (const int32_t id : blocks) users_[id] = 1;
  return blocks;
}

void BlockPool::Share(std::span<const int32_t> blocks) {
  for (const int32_t id : blocks) {
    APB_CHECK(id >= 0 && static_cast<size_t>(id) < users_.size() && users_[id] > 0);
    ++users_[id];
  }
}

void BlockPool::Free(std::span<const int32_t> blocks) {
  for (const int32_t id : blocks) {
    APB_CHECK(id >= 0 && static_cast<size_t>(id) < users_.size() && users_[id] > 0);
    if (--users_[id] == 0) free_.push_back(id);
  }
}

}  // namespace apb::cache
