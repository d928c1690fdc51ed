// The ids of the KV blocks of one rank: which are free, and how many users each has. Holds no
// bytes. Owner: the step thread. The leader's scheduler keeps an account of its own, in numbers of
// blocks (engine/schedule/kv_ledger.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::cache {

class BlockPool {
 public:
  explicit BlockPool(int32_t block_count);
  // Allocates `count` blocks, or none (kResourceExhausted).
  absl::StatusOr<std::vector<int32_t>> Allocate(int64_t count);
  // Adds a user to each of these blocks.
  void Share(std::span<const int32_t> blocks);
  // Removes a user from each of these blocks; a block without users is free. Every id must be in
  // use (checked).
  void Free(std::span<const int32_t> blocks);
  int64_t free_count() const { return static_cast<int64_t>(free_.size()); }
  int64_t total_count() const { return static_cast<int64_t>(users_.size()); }
  int64_t used_count() const { return total_count() - free_count(); }

 private:
  // A stack: the block freed last is allocated first, because it may still be in a CPU cache.
  std::vector<int32_t> free_;
  std::vector<int32_t> users_;  // by block
};

}  // namespace apb::cache
