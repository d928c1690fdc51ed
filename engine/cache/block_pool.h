// Ids of KV blocks of one rank: who has which. Holds no bytes. Owner: the step thread. The leader's
// scheduler keeps an account of its own, in numbers of blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::cache {

class BlockPool {
 public:
  explicit BlockPool(int32_t block_count);
  // `count` blocks, or kResourceExhausted and none.
  absl::StatusOr<std::vector<int32_t>> Allocate(int64_t count);
  // One more user for each of these blocks.
  void Share(std::span<const int32_t> blocks);
  // One user less; the last one gives the block back. Every id must be in use (checked).
  void Free(std::span<const int32_t> blocks);
  int64_t free_count() const { return static_cast<int64_t>(free_.size()); }
  int64_t total_count() const { return static_cast<int64_t>(users_.size()); }
  int64_t used_count() const { return total_count() - free_count(); }

 private:
  std::vector<int32_t>
      free_;  // a stack: the last freed is the next given, it may still be in a CPU cache
  std::vector<int32_t> users_;
};

}  // namespace apb::cache
