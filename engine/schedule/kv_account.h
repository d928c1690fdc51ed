// Who holds how many KV blocks on which rank: the leader's account of all pools, exact because
// placement is a function of the plan and of positions.
#pragma once

#include <cstdint>
#include <vector>

namespace apb::schedule {

// Where the KV of one sequence lies.
struct KvShare {
  std::vector<int64_t> document_slots;  // by rank
  int64_t query_begin = 0;              // first position that is placed row by row
  uint64_t owner_offset = 0;  // row at position p lies on rank (p + owner_offset) % ranks

  // Blocks by rank when all positions below `end` (>= query_begin) are stored.
  std::vector<int64_t> BlocksAt(int64_t end, int64_t block_size) const;
};

class KvAccount {
 public:
  KvAccount(int ranks, int64_t blocks_per_rank) : used_(ranks, 0), total_(blocks_per_rank) {}

  // Whether a holder of `held` (empty = nothing) can grow to `wanted`, with `spare` blocks left
  // over on every rank.
  bool CanGrow(const std::vector<int64_t>& held, const std::vector<int64_t>& wanted,
               int64_t spare) const;
  // Grows `held` to `wanted`; CanGrow(held, wanted, 0) must hold (checked).
  void Grow(std::vector<int64_t>& held, const std::vector<int64_t>& wanted);
  // Gives all back; `held` is empty afterwards.
  void Release(std::vector<int64_t>& held);

  int64_t used(int rank) const { return used_[rank]; }
  int64_t total() const { return total_; }  // of every rank
  bool empty() const;

 private:
  std::vector<int64_t> used_;
  const int64_t total_;
};

}  // namespace apb::schedule
