// The account of KV blocks on every rank: which running sequence holds how many, which cached
// prefix, and which of these may be given back. The only place where blocks are counted; what the
// ranks allocate follows from the step plans. Pure. Owner: the scheduler.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "engine/schedule/prefix_cache.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

class KvLedger {
 public:
  // Each of `ranks` ranks has so many blocks. `keep_unpinned`: cached prefixes that nobody uses
  // stay until their blocks are needed; else only contexts and what is in use stay.
  KvLedger(int ranks, int64_t blocks_per_rank, bool keep_unpinned);

  // The blocks of a running sequence are `wanted` now, by rank. Evicts unpinned prefixes for that,
  // the longest unused first. False: there are not so many, even so; the sequence has what it had.
  bool Take(SequenceId id, const std::vector<int64_t>& wanted);
  bool holds(SequenceId id) const { return running_.contains(id); }
  // Gives the blocks of a running sequence back, with the next step. False: it has none.
  bool Release(SequenceId id);
  // The blocks of running sequence prefix.id become those of a cached prefix, which needs no more
  // than it has on any rank. The pin of the prefix's parent goes with it.
  void Keep(CachedPrefix prefix);

  // The longest prefix that a prompt can start from (PrefixCache).
  PrefixCache& prefixes() { return prefixes_; }
  const PrefixCache& prefixes() const { return prefixes_; }
  void Pin(SequenceId prefix) { prefixes_.Pin(prefix); }
  void Unpin(SequenceId prefix);
  // A context is a prefix like all others from now on. Nothing happens if there is none.
  void Unkeep(SequenceId context);
  // Gives back all that only unpinned prefixes hold.
  void EvictAll();
  // What the ranks give back in the next step, in the order in which it was given up.
  std::vector<SequenceId> TakeReleases();
  bool has_releases() const { return !releases_.empty(); }

  // Blocks that running sequences hold, shared ones included once.
  int64_t used(int rank) const { return used_[rank]; }
  // Those that only cached prefixes hold, and those among them that stay because of contexts.
  int64_t cached(int rank) const { return cached_[rank]; }
  int64_t kept(int rank) const { return prefixes_.HeldBlocks(rank); }
  // Blocks that a sequence going on from `context` cannot have because of the others.
  int64_t kept_beside(int rank, std::optional<SequenceId> context) const {
    return prefixes_.HeldBlocks(rank, context);
  }
  int64_t blocks_per_rank() const { return blocks_per_rank_; }

 private:
  bool Evict();
  // That nothing is counted twice, or lost: no rank has more than its blocks, or less than none.
  void Check() const;

  const int ranks_;
  const int64_t blocks_per_rank_;
  const bool keep_unpinned_;
  std::map<SequenceId, std::vector<int64_t>> running_;  // by rank
  std::vector<int64_t> used_, cached_;                  // sums over running_, over prefixes_
  PrefixCache prefixes_;
  std::vector<SequenceId> releases_;
};

}  // namespace apb::schedule
