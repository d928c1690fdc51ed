// Ended sequences whose KV stays on the ranks, and the index that finds them: a follow-up turn, or
// another question about the same document, starts from the KV already in the cache. A pure account
// of which sequence id holds which tokens, on which ranks, in how many blocks. Owner: the
// scheduler.
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

// Which rank keeps the KV of which position. Positions that a document prefill computed are where
// its plan says; all others are on rank position % ranks.
class KvLayout {
 public:
  KvLayout() = default;
  explicit KvLayout(int ranks) : ranks_(ranks) {}
  // Adds the positions of `plan`: the last ones below `end`, behind those of earlier plans.
  void Append(context_parallel::ShardPlan plan, int64_t end);
  // This layout below `length`; the tokens behind are spread by position % ranks.
  KvLayout Prefix(int64_t length) const;
  // The number of tokens at positions below `length` on `rank`.
  int64_t Count(int rank, int64_t length) const;

 private:
  struct Piece {
    int64_t begin = 0, end = 0;  // positions
    std::shared_ptr<const context_parallel::ShardPlan> plan;
  };
  // The number of tokens of `piece` at positions below `length` on `rank`.
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
  std::vector<int64_t> own_blocks;   // by rank, without those shared with `parent`
  std::optional<SequenceId> parent;  // the prefix whose blocks it shares
  bool kept = false;                 // a context, which stays until Unkeep
};

class PrefixCache {
 public:
  // Prefixes are indexed by chunks of so many tokens; shorter prefixes are not cached.
  static constexpr int64_t kChunk = 64;

  struct Match {
    const CachedPrefix* prefix = nullptr;
    int64_t length = 0;  // tokens in common; less than the prompt, as its last token must run
  };
  // The longest usable prefix of `tokens` whose kv_recipe is one of `recipes`.
  Match Find(std::span<const int32_t> tokens, std::span<const std::string> recipes);
  // The longest prefix of `tokens` that `context` holds, or (`behind`) that a prefix which
  // continues it holds. `min_match` does not apply: tokens that follow a context may change how its
  // last tokens are spelled, and the client asked for this KV.
  Match FindFrom(SequenceId context, std::span<const int32_t> tokens, bool behind);
  // The caller has pinned the parent, if there is one.
  void Insert(CachedPrefix prefix);
  // A pinned prefix is not evicted: it is a context, or a sequence or another prefix shares its
  // blocks.
  void Pin(SequenceId id);
  void Unpin(SequenceId id);
  // Makes a context an ordinary prefix. False: no context has this id.
  bool Unkeep(SequenceId id);
  // Blocks of `rank` that cannot be freed while the contexts and the prefix `also` stay.
  int64_t HeldBlocks(int rank, std::optional<SequenceId> also = std::nullopt) const;
  // Removes the least recently used prefix that is not pinned, and returns it.
  std::optional<CachedPrefix> Evict();

  size_t size() const { return entries_.size(); }
  bool contains(SequenceId id) const { return entries_.contains(id); }
  // The context with this id, or null.
  const CachedPrefix* kept(SequenceId id) const;

 private:
  struct Entry {
    CachedPrefix prefix;
    int pins = 0;
    uint64_t last_use = 0;
    std::vector<uint64_t> hashes;  // of the first 1, 2, 3, ... chunks together
  };
  static std::vector<uint64_t> Hashes(std::span<const int32_t> tokens,
                                      const std::string& kv_recipe);
  bool GoesOnFrom(const CachedPrefix& prefix, SequenceId context) const;

  std::map<SequenceId, Entry> entries_;
  std::unordered_multimap<uint64_t, SequenceId> index_;
  uint64_t clock_ = 0;
};

}  // namespace apb::schedule
