// The account of KV blocks on every rank: how many each running sequence and each cached prefix
// holds, and which prefixes may be evicted. Blocks are counted nowhere else; the allocations of the
// ranks follow from the step plans. Pure. Owner: the scheduler.
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
  // `blocks_per_rank` blocks on each of `ranks` ranks. With `keep_unpinned`, cached prefixes that
  // nothing uses stay until their blocks are needed; without, only contexts and prefixes in use
  // stay.
  KvLedger(int ranks, int64_t blocks_per_rank, bool keep_unpinned);

  // Sets the blocks of a running sequence to `wanted` (by rank). Evicts unpinned prefixes if it
  // must, the least recently used first. False: too few blocks even so; the sequence keeps what it
  // had.
  bool Take(SequenceId id, const std::vector<int64_t>& wanted);
  bool holds(SequenceId id) const { return running_.contains(id); }
  // Gives back the blocks of a running sequence; the next step releases them. False: it has none.
  bool Release(SequenceId id);
  // Turns the blocks of running sequence prefix.id into those of a cached prefix, which must not
  // need more blocks on any rank. The pin on the prefix's parent passes to the prefix.
  void Keep(CachedPrefix prefix);

  // The index that finds the longest prefix of a prompt.
  PrefixCache& prefixes() { return prefixes_; }
  const PrefixCache& prefixes() const { return prefixes_; }
  void Pin(SequenceId prefix) { prefixes_.Pin(prefix); }
  void Unpin(SequenceId prefix);
  // Makes a context an ordinary cached prefix. Other ids are ignored.
  void Unkeep(SequenceId context);
  // Evicts all unpinned prefixes.
  void EvictAll();
  // The sequences whose blocks the ranks free in the next step, in the order in which they were
  // given up.
  std::vector<SequenceId> TakeReleases();
  bool has_releases() const { return !releases_.empty(); }

  // Blocks that running sequences hold, not counting those shared with a cached prefix.
  int64_t used(int rank) const { return used_[rank]; }
  // Blocks of cached prefixes, and the blocks among them that contexts hold.
  int64_t cached(int rank) const { return cached_[rank]; }
  int64_t kept(int rank) const { return prefixes_.HeldBlocks(rank); }
  // Blocks of contexts that a sequence continuing `context` cannot have, because other contexts
  // hold them.
  int64_t kept_beside(int rank, std::optional<SequenceId> context) const {
    return prefixes_.HeldBlocks(rank, context);
  }
  int64_t blocks_per_rank() const { return blocks_per_rank_; }

 private:
  bool Evict();
  // Checks the invariant: every rank has between 0 and blocks_per_rank blocks in use.
  void Check() const;

  const int ranks_;
  const int64_t blocks_per_rank_;
  const bool keep_unpinned_;
  std::map<SequenceId, std::vector<int64_t>> running_;  // by rank
  std::vector<int64_t> used_, cached_;  // by rank: sums over running_ and over prefixes_
  PrefixCache prefixes_;
  std::vector<SequenceId> releases_;
};

}  // namespace apb::schedule
