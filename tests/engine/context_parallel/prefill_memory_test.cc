// Goal: a prefill takes as much memory as PrefillMemoryOf says. Method: the guarded backend counts
// the bytes that are allocated, for each rank of a group alone and for several lengths. Also checks
// the numbers of docs/tuning.md.
#include "engine/context_parallel/prefill_memory.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/gpu/solo_communicator.h"

namespace apb::context_parallel {
namespace {

struct Case {
  std::string strategy, compressor;
  int64_t tokens = 0;
  int ranks = 1, hosts = 1;
  bool overlap = false;
};

ShardPlan PlanOf(const Case& c) {
  return *MakeShardPlan(
      c.strategy, {.document_length = c.tokens, .query_length = 1, .embedded_query_length = 6},
      {.hosts = c.hosts, .row_cost_pairs = 50});
}

// The most bytes that rank `rank` holds during a prefill, less those that it held before.
int64_t MeasuredBytes(const Case& c, int rank, kernels::Backend& device,
                      const model::Weights& weights) {
  const model::ModelConfig& config = weights.config();
  auto stream = *device.NewStream();
  auto decoder = *model::Decoder::Create(weights, device);
  auto cache = *cache::PagedKvCache::Create({.layers = config.layers,
                                             .kv_heads = config.kv_heads,
                                             .head_dim = config.head_dim,
                                             .block_size = 8,
                                             .block_count = c.tokens / 8 + 1,
                                             .dtype = config.dtype},
                                            device);
  bench::SoloCommunicator communicator(rank, c.ranks, device);
  const std::vector<int32_t> document = Text(0, c.tokens), query = Text(5000, 5006);
  cache::SequenceKv kv;
  kernels::TakeGuardedPeak(device);
  const int64_t before = kernels::TakeGuardedPeak(device);  // the bytes held now
  auto prefill = executor::DocumentPrefill::Start({.decoder = *decoder,
                                                   .weights = weights,
                                                   .cache = *cache,
                                                   .backend = device,
                                                   .communicator = communicator,
                                                   .overlap_passing = c.overlap},
                                                  {{.plan = PlanOf(c),
                                                    .tokens = document,
                                                    .embedded_query = query,
                                                    .compressor = c.compressor,
                                                    .kv = &kv}},
                                                  *stream);
  EXPECT_TRUE(prefill.ok()) << prefill.status();
  EXPECT_TRUE((*prefill)->RunLayers(0, config.layers, *stream).ok());
  EXPECT_TRUE(stream->Synchronize().ok());
  return kernels::TakeGuardedPeak(device) - before;
}

TEST(PrefillMemory, IsWhatADeviceIsAskedFor) {
  auto device = kernels::CreateGuardedBackend(64 << 20);
  auto weights = TinyModel::Weights(*device, {});
  const model::ModelConfig& config = weights->config();
  const ModelShape shape{.layers = config.layers,
                         .hidden_size = config.hidden_size,
                         .mlp_size = config.mlp_size,
                         .query_heads = config.query_heads,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .retaining_width = weights->layer(0).retaining_fc1.shape[0],
                         .element_bytes = 4};
  std::vector<Case> cases;
  // Lengths with more rows on every rank than the decoder always has memory for.
  for (const int64_t tokens : {1200, 6000}) {
    for (const int ranks : {1, 2, 4}) {
      cases.push_back({"star", "", tokens, ranks, ranks});
      for (const char* compressor : {"retaining_heads", "query_aware", "random"}) {
        cases.push_back({"apb", compressor, tokens, ranks, 2 * ranks});
        cases.push_back({"apb", compressor, tokens, ranks, ranks, /*overlap=*/true});
      }
      for (const StrategyInfo* strategy : Strategies()) {
        if (strategy->exact) {
          cases.push_back(
              {std::string(strategy->name), "", tokens, ranks, HostsOf(*strategy, ranks, ranks)});
        }
      }
    }
  }
  for (const Case& c : cases) {
    const ShardPlan plan = PlanOf(c);
    for (int rank = 0; rank < c.ranks; ++rank) {
      const double said = static_cast<double>(
          PrefillMemoryOf(plan, c.ranks, rank, shape, c.compressor, c.overlap).total());
      const double measured = static_cast<double>(MeasuredBytes(c, rank, *device, *weights));
      // The backend rounds every buffer up to 256 bytes.
      EXPECT_NEAR(measured, said, 0.01 * said + 24 * 256)
          << c.strategy << " " << c.compressor << " " << c.tokens << " tokens, rank " << rank
          << " of " << c.ranks;
    }
  }
}

// The table of docs/tuning.md: a million tokens on 8 ranks, Llama 3.1 8B, bf16.
TEST(PrefillMemory, OfAMillionTokens) {
  const ModelShape shape{.layers = 32,
                         .hidden_size = 4096,
                         .mlp_size = 14336,
                         .query_heads = 32,
                         .kv_heads = 8,
                         .head_dim = 128,
                         .retaining_width = 1024};
  for (const auto& [strategy, gib] :
       std::vector<std::pair<std::string, double>>{{"full", 28.3},
                                                   {"star", 7.3},
                                                   {"apb", 4.3},
                                                   {"ring_kv", 8.8},
                                                   {"ring_q", 36.0},
                                                   {"token_ring", 13.8},
                                                   {"ulysses", 6.4}}) {
    const ShardPlan plan =
        *MakeShardPlan(strategy, {.document_length = 1 << 20, .query_length = 64},
                       {.hosts = strategy == "full" ? 1 : 8});
    const double bytes = static_cast<double>(
        MostPrefillBytes(plan, 8, shape, strategy == "apb" ? "retaining_heads" : "", false));
    EXPECT_NEAR(bytes / (1 << 30), gib, 0.05) << strategy;
  }
}

}  // namespace
}  // namespace apb::context_parallel
