#include "engine/schedule/kv_account.h"

#include <algorithm>

#include "engine/base/check.h"

namespace apb::schedule {
namespace {

// Number of positions p < end with (p + offset) % ranks == rank.
int64_t OwnedBelow(int64_t end, uint64_t offset, int64_t rank, int64_t ranks) {
  const int64_t shift = static_cast<int64_t>(offset % static_cast<uint64_t>(ranks));
  const int64_t first = (rank - shift + ranks) % ranks;
  return end <= first ? 0 : (end - first + ranks - 1) / ranks;
}

int64_t HeldOn(const std::vector<int64_t>& held, size_t rank) {
  return held.empty() ? 0 : held[rank];
}

}  // namespace

std::vector<int64_t> KvShare::BlocksAt(int64_t end, int64_t block_size) const {
  const int64_t ranks = static_cast<int64_t>(document_slots.size());
  std::vector<int64_t> blocks(ranks);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t slots = document_slots[rank] + OwnedBelow(end, owner_offset, rank, ranks) -
                          OwnedBelow(query_begin, owner_offset, rank, ranks);
    blocks[rank] = (slots + block_size - 1) / block_size;
  }
  return blocks;
}

bool KvAccount::CanGrow(const std::vector<int64_t>& held, const std::vector<int64_t>& wanted,
                        int64_t spare) const {
  for (size_t rank = 0; rank < used_.size(); ++rank) {
    const int64_t extra = wanted[rank] - HeldOn(held, rank);
    if (extra > 0 && used_[rank] + extra + spare > total_) return false;
  }
  return true;
}

void KvAccount::Grow(std::vector<int64_t>& held, const std::vector<int64_t>& wanted) {
  for (size_t rank = 0; rank < used_.size(); ++rank) {
    used_[rank] += wanted[rank] - HeldOn(held, rank);
    APB_CHECK(wanted[rank] >= HeldOn(held, rank) && used_[rank] <= total_);
  }
  held = wanted;
}

void KvAccount::Release(std::vector<int64_t>& held) {
  for (size_t rank = 0; rank < used_.size(); ++rank) {
    used_[rank] -= HeldOn(held, rank);
    APB_CHECK(used_[rank] >= 0);
  }
  held.clear();
}

bool KvAccount::empty() const {
  return std::all_of(used_.begin(), used_.end(), [](int64_t used) { return used == 0; });
}

}  // namespace apb::schedule
