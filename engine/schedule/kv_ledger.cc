#include "engine/schedule/kv_ledger.h"

#include <utility>

#include "engine/base/check.h"

namespace apb::schedule {

KvLedger::KvLedger(int ranks, int64_t blocks_per_rank, bool keep_unpinned)
    : ranks_(ranks),
      blocks_per_rank_(blocks_per_rank),
      keep_unpinned_(keep_unpinned),
      used_(ranks, 0),
      cached_(ranks, 0) {}

bool KvLedger::Take(SequenceId id, const std::vector<int64_t>& wanted) {
  const auto found = running_.find(id);
  const auto held = [&](int r) { return found == running_.end() ? 0 : found->second[r]; };
  for (int r = 0; r < ranks_; ++r) {
    while (used_[r] + cached_[r] + wanted[r] - held(r) > blocks_per_rank_) {
      if (!Evict()) return false;
    }
  }
  for (int r = 0; r < ranks_; ++r) used_[r] += wanted[r] - held(r);
  running_[id] = wanted;
  Check();
  return true;
}

bool KvLedger::Release(SequenceId id) {
  const auto found = running_.find(id);
  if (found == running_.end()) return false;
  for (int r = 0; r < ranks_; ++r) used_[r] -= found->second[r];
  running_.erase(found);
  releases_.push_back(id);
  Check();
  return true;
}

void KvLedger::Keep(CachedPrefix prefix) {
  const auto found = running_.find(prefix.id);
  APB_CHECK(found != running_.end());
  for (int r = 0; r < ranks_; ++r) {
    APB_CHECK(prefix.own_blocks[r] <= found->second[r]);
    used_[r] -= found->second[r];
    cached_[r] += prefix.own_blocks[r];
  }
  running_.erase(found);
  prefixes_.Insert(std::move(prefix));
  Check();
}

void KvLedger::Unpin(SequenceId prefix) {
  prefixes_.Unpin(prefix);
  if (!keep_unpinned_) EvictAll();
}

void KvLedger::Unkeep(SequenceId context) {
  if (prefixes_.Unkeep(context) && !keep_unpinned_) EvictAll();
}

bool KvLedger::Evict() {
  const std::optional<CachedPrefix> evicted = prefixes_.Evict();
  if (!evicted.has_value()) return false;
  for (int r = 0; r < ranks_; ++r) cached_[r] -= evicted->own_blocks[r];
  releases_.push_back(evicted->id);
  Check();
  return true;
}

void KvLedger::EvictAll() {
  while (Evict()) {
  }
}

std::vector<SequenceId> KvLedger::TakeReleases() { return std::exchange(releases_, {}); }

void KvLedger::Check() const {
  for (int r = 0; r < ranks_; ++r) {
    APB_CHECK(used_[r] >= 0 && cached_[r] >= 0);
    APB_CHECK(used_[r] + cached_[r] <= blocks_per_rank_);
  }
}

}  // namespace apb::schedule
