#include "engine/schedule/prefix_cache.h"

#include <algorithm>
#include <set>
#include <utility>

#include "engine/base/check.h"

namespace apb::schedule {

void KvLayout::Append(context_parallel::ShardPlan plan, int64_t end) {
  const int64_t begin = end - plan.document_length();
  if (begin == end) return;
  APB_CHECK(pieces_.empty() || pieces_.back().end <= begin);
  pieces_.push_back(
      {begin, end, std::make_shared<const context_parallel::ShardPlan>(std::move(plan))});
}

KvLayout KvLayout::Prefix(int64_t length) const {
  KvLayout prefix = *this;
  while (!prefix.pieces_.empty() && prefix.pieces_.back().begin >= length)
    prefix.pieces_.pop_back();
  if (!prefix.pieces_.empty())
    prefix.pieces_.back().end = std::min(prefix.pieces_.back().end, length);
  return prefix;
}

int64_t KvLayout::CountOf(const Piece& piece, int rank, int64_t length) const {
  const context_parallel::HostRange hosts =
      context_parallel::HostsOfRank(static_cast<int>(piece.plan->hosts.size()), ranks_, rank);
  int64_t count = 0;
  for (int h = hosts.first; h < hosts.last; ++h) {
    for (const context_parallel::TokenSpan& span : piece.plan->hosts[h].local)
      count += std::clamp<int64_t>(length - span.begin, 0, span.length());
  }
  return count;
}

int64_t KvLayout::Count(int rank, int64_t length) const {
  // The number of positions p < bound with p % ranks == rank.
  const auto dealt = [&](int64_t bound) { return (bound + ranks_ - 1 - rank) / ranks_; };
  int64_t count = dealt(length);
  for (const Piece& piece : pieces_) {
    if (piece.begin >= length) break;
    const int64_t end = std::min(piece.end, length);
    count += CountOf(piece, rank, end) - (dealt(end) - dealt(piece.begin));
  }
  return count;
}

std::vector<uint64_t> PrefixCache::Hashes(std::span<const int32_t> tokens,
                                          const std::string& kv_recipe) {
  // FNV-1a. Matches are compared token by token, so a collision costs only time.
  uint64_t hash = 14695981039346656037u;
  const auto add = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  for (const char c : kv_recipe) add(static_cast<unsigned char>(c));
  std::vector<uint64_t> hashes;
  for (size_t i = 0; i < tokens.size(); ++i) {
    add(static_cast<uint32_t>(tokens[i]));
    if ((i + 1) % kChunk == 0) hashes.push_back(hash);
  }
  return hashes;
}

namespace {

// The number of equal tokens at the beginning of both, at most one less than `tokens` has.
int64_t Common(const std::vector<int32_t>& own, std::span<const int32_t> tokens) {
  const auto differs = std::mismatch(own.begin(), own.end(), tokens.begin(), tokens.end());
  return std::min<int64_t>(differs.first - own.begin(), static_cast<int64_t>(tokens.size()) - 1);
}

}  // namespace

PrefixCache::Match PrefixCache::Find(std::span<const int32_t> tokens,
                                     std::span<const std::string> recipes) {
  Match best;
  Entry* found = nullptr;
  for (const std::string& recipe : recipes) {
    const std::vector<uint64_t> hashes = Hashes(tokens, recipe);
    // A prefix with the first i chunks is also indexed by its first i - 1.
    size_t chunks = 0;
    while (chunks < hashes.size() && index_.contains(hashes[chunks])) ++chunks;
    if (chunks == 0) continue;
    const auto [begin, end] = index_.equal_range(hashes[chunks - 1]);
    for (auto it = begin; it != end; ++it) {
      Entry& entry = entries_.at(it->second);
      const int64_t length = Common(entry.prefix.tokens, tokens);
      if (entry.prefix.kv_recipe != recipe || length < entry.prefix.min_match ||
          length <= best.length)
        continue;
      best = {&entry.prefix, length};
      found = &entry;
    }
  }
  if (found != nullptr) found->last_use = ++clock_;
  return best;
}

bool PrefixCache::GoesOnFrom(const CachedPrefix& prefix, SequenceId context) const {
  const CachedPrefix* p = &prefix;
  while (p->id != context && p->parent.has_value()) p = &entries_.at(*p->parent).prefix;
  return p->id == context;
}

PrefixCache::Match PrefixCache::FindFrom(SequenceId context, std::span<const int32_t> tokens,
                                         bool behind) {
  Match best;
  Entry* found = nullptr;
  for (auto& [id, entry] : entries_) {
    if (behind ? !GoesOnFrom(entry.prefix, context) : id != context) continue;
    const int64_t length = Common(entry.prefix.tokens, tokens);
    if (length <= best.length) continue;
    best = {&entry.prefix, length};
    found = &entry;
  }
  if (found != nullptr) found->last_use = ++clock_;
  return best;
}

void PrefixCache::Insert(CachedPrefix prefix) {
  Entry entry;
  entry.pins = prefix.kept ? 1 : 0;
  entry.hashes = Hashes(prefix.tokens, prefix.kv_recipe);
  entry.last_use = ++clock_;
  const SequenceId id = prefix.id;
  for (const uint64_t hash : entry.hashes) index_.emplace(hash, id);
  entry.prefix = std::move(prefix);
  entries_.emplace(id, std::move(entry));
}

void PrefixCache::Pin(SequenceId id) { ++entries_.at(id).pins; }

void PrefixCache::Unpin(SequenceId id) {
  Entry& entry = entries_.at(id);
  APB_CHECK(entry.pins > 0);
  --entry.pins;
}

bool PrefixCache::Unkeep(SequenceId id) {
  if (kept(id) == nullptr) return false;
  entries_.at(id).prefix.kept = false;
  Unpin(id);
  return true;
}

const CachedPrefix* PrefixCache::kept(SequenceId id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() || !found->second.prefix.kept ? nullptr : &found->second.prefix;
}

int64_t PrefixCache::HeldBlocks(int rank, std::optional<SequenceId> also) const {
  std::set<SequenceId> held;
  for (const auto& [id, entry] : entries_) {
    if (!entry.prefix.kept && also != id) continue;
    for (std::optional<SequenceId> at = id; at.has_value() && held.insert(*at).second;)
      at = entries_.at(*at).prefix.parent;
  }
  int64_t blocks = 0;
  for (const SequenceId id : held) blocks += entries_.at(id).prefix.own_blocks[rank];
  return blocks;
}

std::optional<CachedPrefix> PrefixCache::Evict() {
  auto oldest = entries_.end();
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->second.pins > 0) continue;
    if (oldest == entries_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == entries_.end()) return std::nullopt;
  for (const uint64_t hash : oldest->second.hashes) {
    const auto [begin, end] = index_.equal_range(hash);
    for (auto it = begin; it != end; ++it) {
      if (it->second != oldest->first) continue;
      index_.erase(it);
      break;
    }
  }
  CachedPrefix prefix = std::move(oldest->second.prefix);
  entries_.erase(oldest);
  if (prefix.parent.has_value()) Unpin(*prefix.parent);
  return prefix;
}

}  // namespace apb::schedule
