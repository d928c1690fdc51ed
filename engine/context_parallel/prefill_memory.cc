#include "engine/context_parallel/prefill_memory.h"

#include <algorithm>

namespace apb::context_parallel {
namespace {

constexpr int64_t kRowChunk = 4096;    // of model::Decoder on a device
constexpr int64_t kScoreChunk = 1024;  // of the retaining heads
constexpr int64_t kPoolReach = 2;      // rows of the anchor that AnchorStrategy scores, too

int64_t QueryWidth(const ModelShape& m) { return m.query_heads * m.head_dim; }
int64_t KvWidth(const ModelShape& m) { return 2 * m.kv_heads * m.head_dim; }  // K and V

// PartialResults of `rows` rows: out and lse of all heads, f32.
int64_t PartialBytes(const ModelShape& m, int64_t rows) {
  return rows * m.query_heads * (m.head_dim + 1) * 4;
}

int64_t LocalRows(const ShardPlan& plan, const HostRange& hosts) {
  int64_t rows = 0;
  for (int h = hosts.first; h < hosts.last; ++h) rows += plan.hosts[h].local_length();
  return rows;
}

// As AnchorStrategy::NeedsAnchor.
bool NeedsAnchor(const ShardPlan& plan, const HostRange& hosts, std::string_view compressor) {
  bool needs = false;
  for (int h = hosts.first; h < hosts.last; ++h) {
    const HostShard& host = plan.hosts[h];
    needs |= host.sees_anchor || (host.passing_length > 0 && compressor == "query_aware");
  }
  return needs;
}

int64_t AnchorStrategyBytes(const ShardPlan& plan, int ranks, const HostRange& hosts,
                            const ModelShape& m, std::string_view compressor, bool overlap) {
  int64_t longest = 0, scored = 0, scores = 0, indices = 0, behind_passing = 0;
  bool passed = false;
  for (int h = 0; h < hosts.last; ++h) {
    const HostShard& host = plan.hosts[h];
    if (h >= hosts.first && host.passing_length > 0) {
      const int64_t rows =
          host.local_length() +
          (host.sees_anchor ? std::min<int64_t>(kPoolReach, std::ssize(plan.anchor)) : 0);
      scored = std::max(scored, rows);
      scores += rows;
      indices = std::max(indices, host.passing_length);
    }
    if (h >= hosts.first && passed) behind_passing += host.local_length();
    passed |= host.passing_length > 0;
  }
  for (const HostShard& host : plan.hosts) longest = std::max(longest, host.passing_length);
  if (longest == 0) return 0;
  const int64_t sent = static_cast<int64_t>(plan.hosts.size()) / ranks * longest * KvWidth(m);
  int64_t bytes = (scored + scores + indices) * m.kv_heads * 4 + sent * m.element_bytes;
  if (compressor == "retaining_heads")
    bytes += std::min(scored, kScoreChunk) * m.retaining_width * m.element_bytes;
  if (ranks > 1) bytes += ranks * sent * m.element_bytes;
  if (ranks > 1 && overlap) bytes += 2 * PartialBytes(m, behind_passing);
  return bytes;
}

int64_t RingStrategyBytes(const ShardPlan& plan, int rank, const ModelShape& m) {
  const int hosts = static_cast<int>(plan.hosts.size());
  const int64_t positions = plan.document_length() * 4;
  if (hosts == 1) return positions;
  int64_t most = 0, other_rows = 0;
  for (int h = 0; h < hosts; ++h) {
    most = std::max(most, plan.hosts[h].local_length());
    if (h != rank) other_rows += plan.hosts[h].local_length();
  }
  const int64_t rows = plan.hosts[rank].local_length();
  const int64_t queries = 2 * most * QueryWidth(m) * m.element_bytes;
  switch (plan.exchange) {
    case Exchange::kRingKv:
      return positions + 2 * most * KvWidth(m) * m.element_bytes + 2 * PartialBytes(m, rows);
    case Exchange::kRingQ:
      return positions + queries + hosts * PartialBytes(m, rows) + PartialBytes(m, other_rows);
    default:  // token_ring
      return positions + queries + 2 * PartialBytes(m, rows) + 2 * PartialBytes(m, most);
  }
}

int64_t UlyssesBytes(const ShardPlan& plan, int ranks, int rank, const ModelShape& m) {
  const int64_t tokens = plan.document_length(), rows = plan.hosts[rank].local_length(),
                query_share = m.query_heads / ranks,
                kv_share = std::max<int64_t>(1, m.kv_heads / ranks);
  const int64_t packed = ranks > 1 ? rows * std::max(query_share, kv_share) : 0;
  return tokens * 4 +
         (tokens * 2 * (query_share + kv_share) + packed) * m.head_dim * m.element_bytes;
}

}  // namespace

PrefillMemory PrefillMemoryOf(const ShardPlan& plan, int ranks, int rank, const ModelShape& m,
                              std::string_view compressor, bool overlap) {
  const HostRange hosts = HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
  const int64_t stored = LocalRows(plan, hosts);
  const int64_t rows =
      stored + (NeedsAnchor(plan, hosts, compressor) ? std::ssize(plan.anchor) : 0);
  const int64_t chunk = std::min(rows, kRowChunk);
  PrefillMemory memory;
  memory.hidden = rows * (m.hidden_size * m.element_bytes + 8) + stored * 8;
  memory.attention = rows * (2 * QueryWidth(m) + KvWidth(m)) * m.element_bytes;
  memory.chunk = chunk * (m.hidden_size + 2 * m.mlp_size) * m.element_bytes;
  if (plan.exchange == Exchange::kAnchor) {
    memory.strategy = AnchorStrategyBytes(plan, ranks, hosts, m, compressor, overlap);
  } else if (plan.exchange == Exchange::kUlysses) {
    memory.strategy = UlyssesBytes(plan, ranks, rank, m);
  } else {
    memory.strategy = RingStrategyBytes(plan, rank, m);
  }
  return memory;
}

int64_t MostPrefillBytes(const ShardPlan& plan, int ranks, const ModelShape& model,
                         std::string_view compressor, bool overlap) {
  int64_t most = 0;
  for (int rank = 0; rank < ranks; ++rank)
    most = std::max(most, PrefillMemoryOf(plan, ranks, rank, model, compressor, overlap).total());
  return most;
}

}  // namespace apb::context_parallel
