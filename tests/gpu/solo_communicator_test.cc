// Goal: a rank that runs alone computes as many rows and sends as many bytes as in its group.
// Method: runs all ranks of a prefill alone, one after the other, and compares their bytes with the
// cost model's, which the strategies' contract compares with real groups.
#include "tests/gpu/solo_communicator.h"

#include <gtest/gtest.h>

#include "engine/context_parallel/cost.h"
#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::bench {
namespace {

TEST(SoloCommunicator, SendsWhatTheGroupWould) {
  const model::ModelConfig& config = context_parallel::TinyModel::Get().config;
  for (const char* strategy : {"full", "star", "apb", "ring_kv", "ring_q", "token_ring"}) {
    constexpr int kRanks = 4;
    context_parallel::PrefillCase c{.strategy = strategy,
                                    .compressor = "retaining_heads",
                                    .options = {.hosts = kRanks},
                                    .document_length = 96};
    int64_t sent = 0;
    context_parallel::ShardPlan plan;
    for (int rank = 0; rank < kRanks; ++rank) {
      auto backend = *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
      SoloCommunicator alone(rank, kRanks, *backend);
      context_parallel::TinyEngine engine(alone);
      auto result = engine.Prefill(c, /*with_last_output=*/false);
      plan = result.plan;
      EXPECT_EQ(result.kv.slot_count(), context_parallel::DocumentTokensOfRank(plan, kRanks, rank));
      for (const auto& operation : alone.stats().operations)
        if (operation.name != "all_reduce") sent += operation.bytes_sent;  // the test's own
    }
    const context_parallel::ModelShape shape{.layers = config.layers,
                                             .query_heads = config.query_heads,
                                             .kv_heads = config.kv_heads,
                                             .head_dim = config.head_dim,
                                             .element_bytes = 4};
    EXPECT_EQ(context_parallel::PredictPrefill(plan, kRanks, 0, shape, {}).bytes_sent, sent)
        << strategy;
  }
}

}  // namespace
}  // namespace apb::bench
