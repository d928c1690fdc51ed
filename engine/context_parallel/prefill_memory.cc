#include "engine/context_parallel/prefill_memory.h"

#include <algorithm>

#include "engine/context_parallel/strategy_info.h"
#include "engine/model/decoder.h"

namespace apb::context_parallel {

PrefillMemory PrefillMemoryOf(const ShardPlan& plan, int ranks, int rank, const ModelShape& m,
                              std::string_view compressor, bool overlap) {
  const StrategyInfo& strategy = *plan.strategy;
  const int64_t stored = DocumentTokensOfRank(plan, ranks, rank);
  const int64_t anchor =
      strategy.needs_anchor(plan, ranks, rank, compressor) ? std::ssize(plan.anchor) : 0;
  const int64_t rows = stored + anchor;
  const int64_t chunk = std::min(rows, model::Decoder::kDeviceRowChunk);
  PrefillMemory memory;
  memory.hidden = rows * (m.hidden_size * m.element_bytes + 8) + stored * 8;
  memory.attention = rows * (2 * m.query_width() + m.kv_width()) * m.element_bytes;
  memory.chunk = chunk * (m.hidden_size + 2 * m.mlp_size) * m.element_bytes;
  memory.strategy = strategy.prefill_bytes({.plan = plan,
                                            .ranks = ranks,
                                            .rank = rank,
                                            .model = m,
                                            .compressor = compressor,
                                            .overlap_passing = overlap});
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
