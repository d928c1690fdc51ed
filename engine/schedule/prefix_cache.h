// Ended sequences whose KV stays on the ranks, and the index that finds them again: a follow-up
// turn, or another question about the same document, starts from what is there. Pure account: which
// sequence id holds which tokens, where, and how many blocks. Owner: the scheduler.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/context_parallel/shard_plan.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

// Which rank keeps the KV of which position: where a document prefill computed a run of positions,
// as its plan says; all others on rank position % ranks.
class KvLayout {
 public:
  KvLayout() = default;
  explicit KvLayout(int ranks) : ranks_(ranks) {}
  // The positions of `plan`, which are the last ones below `end` and follow those of earlier plans.
  void Append(context_parallel::ShardPlan plan, int64_t end);
  // The same up to `length`, new rows behind it.
  KvLayout Prefix(int64_t length) const;
  // Tokens at positions below `length` on `rank`.
  int64_t Count(int rank, int64_t length) const;

 private:
  struct Piece {
    int64_t begin = 0, end = 0;  // positions
    std::shared_ptr<const context_parallel::ShardPlan> plan;
  };
  // Tokens of `piece` at positions below `length` on `rank`.
  int64_t CountOf(const Piece& piece, int rank, int64_t length) const;

  int ranks_ = 1;
  std::vector<Piece> pieces_;  // ascending
};

struct CachedPrefix {
  SequenceId id{};
  std::vector<int32_t> tokens;
  // How the KV was computed: "" if exactly, else the strategy and its options. A prompt never uses
  // KV of another recipe than its own, exact KV apart.
  std::string kv_recipe;
  // Fewer matching tokens than this are of no use, unless the prompt names the prefix as its
  // context: the document of an approximate prefill serves as a whole or not at all.
  int64_t min_match = 0;
  KvLayout layout;
  std::vector<int64_t> own_blocks;   // of each rank, those shared with `parent` not counted
  std::optional<SequenceId> parent;  // whose blocks it shares
  bool kept = false;                 // a context: it stays until Unkeep
};

class PrefixCache {
 public:
  // Prefixes are indexed by runs of so many tokens; shorter ones are not kept.
  static constexpr int64_t kChunk = 64;

  struct Match {
    const CachedPrefix* prefix = nullptr;
    int64_t length = 0;  // tokens in common, one less than the prompt at most
  };
  // The longest usable prefix of `tokens` whose kv_recipe is one of `recipes`.
  Match Find(std::span<const int32_t> tokens, std::span<const std::string> recipes);
  // The longest prefix of `tokens` whose KV is that of `context` itself, or (`behind`) of a prefix
  // that goes on from it. `min_match` does not count: what follows a context may change how its
  // last tokens are spelled, and its KV was asked for.
  Match FindFrom(SequenceId context, std::span<const int32_t> tokens, bool behind);
  // The parent, if any, is pinned already.
  void Insert(CachedPrefix prefix);
  // A pinned prefix is not evicted: it is kept, or a sequence or another prefix shares its blocks.
  void Pin(SequenceId id);
  void Unpin(SequenceId id);
  // A kept prefix becomes one like all others. False: there is none with this id.
  bool Unkeep(SequenceId id);
  // Blocks of `rank` that cannot be given back while the kept prefixes and `also` are there.
  int64_t HeldBlocks(int rank, std::optional<SequenceId> also = std::nullopt) const;
  // Forgets the prefix that was not used for longest and is not pinned.
  std::optional<CachedPrefix> Evict();

  size_t size() const { return entries_.size(); }
  bool contains(SequenceId id) const { return entries_.contains(id); }
  // Null: there is none.
  const CachedPrefix* kept(SequenceId id) const;

 private:
  struct Entry {
    CachedPrefix prefix;
    int pins = 0;
    uint64_t last_use = 0;
    std::vector<uint64_t> hashes;  // of the first 1, 2, 3, ... chunks
  };
  static std::vector<uint64_t> Hashes(std::span<const int32_t> tokens,
                                      const std::string& kv_recipe);
  bool GoesOnFrom(const CachedPrefix& prefix, SequenceId context) const;

  std::map<SequenceId, Entry> entries_;
  std::unordered_multimap<uint64_t, SequenceId> index_;
  uint64_t clock_ = 0;
};

}  // namespace apb::schedule
