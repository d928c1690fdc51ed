#include "tests/engine/context_parallel/contract.h"

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "engine/comm/local_communicator.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"
#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::context_parallel {
namespace {

// For float32, three layers and hidden states of size 1 to 10. Sums in another order differ by a
// few 1e-6.
constexpr double kTolerance = 1e-4;
constexpr int64_t kEverything = 1 << 20;
constexpr const char* kCompressors[] = {"retaining_heads", "query_aware", "random"};

// APB as it is used, with tiny lengths: anchor and passing blocks are shorter than the shards.
PrefillCase TypicalCase(const char* compressor, int hosts, int64_t document_length) {
  return {.strategy = "apb",
          .compressor = compressor,
          .options = {.hosts = hosts, .anchor_length = 12, .passing_length = 5},
          .document_length = document_length,
          .embedded_query = Text(500, 506),
          .query_insert_position = 3};
}

PrefillCase ExactCase(const char* compressor, int hosts, int64_t document_length) {
  return {.strategy = "apb",
          .compressor = compressor,
          .options = {.hosts = hosts, .anchor_length = 0, .passing_length = kEverything},
          .document_length = document_length};
}

// The tiny model's shape.
ModelShape Shape() {
  const model::ModelConfig& config = TinyModel::Get().config;
  return {.layers = config.layers,
          .query_heads = config.query_heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .element_bytes = 4};
}

TinyEngine::PrefillResult OnOneRank(const PrefillCase& c) {
  auto alone = comm::CreateLocalGroup(1, absl::Minutes(1));
  return TinyEngine(*alone[0]).Prefill(c);
}

}  // namespace

void CheckPassingEverythingIsFull(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const int64_t n : {0, 1, 5, 61, 90}) {
    const Hidden dense = Dense(Text(0, n));
    for (const char* compressor : kCompressors) {
      for (const int virtual_hosts : {1, 3}) {
        PrefillCase c = ExactCase(compressor, engine.ranks() * virtual_hosts, n);
        for (const int64_t row_cost : {0, 20}) {
          c.options.row_cost_pairs = row_cost;
          c.overlap = row_cost > 0;  // other checks test each of the two alone
          auto result = engine.Prefill(c);
          EXPECT_LT(Difference(result.document, dense), kTolerance) << c.Name();
          engine.cache().Release(result.kv);
        }
      }
    }
  }
}

void CheckExactStrategiesAreFull(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const StrategyInfo* strategy : Strategies()) {
    if (!strategy->exact) continue;
    const bool fits = strategy->supports(Shape(), engine.ranks()).ok();
    for (const int64_t n : {0, 1, 2, 5, 8, 61, 90, 131}) {
      const PrefillCase c{.strategy = std::string(strategy->name),
                          .options = {.hosts = HostsOf(*strategy, engine.ranks(), 1)},
                          .document_length = n};
      if (!fits) {
        EXPECT_EQ(engine.TryPrefill(c).code(), absl::StatusCode::kInvalidArgument) << c.Name();
        continue;
      }
      auto result = engine.Prefill(c);
      EXPECT_LT(Difference(result.document, Dense(Text(0, n))), kTolerance) << c.Name();
      EXPECT_EQ(result.kv.slot_count(),
                DocumentTokensOfRank(result.plan, engine.ranks(), engine.rank()));
      engine.cache().Release(result.kv);
    }
  }
}

void CheckHostZeroIsFull(const TestRank& rank) {
  TinyEngine engine(rank);
  const Hidden dense = Dense(Text(0, 83));
  for (const char* compressor : kCompressors) {
    const PrefillCase c = TypicalCase(compressor, 2 * engine.ranks(), 83);
    auto result = engine.Prefill(c);
    const TokenSpan first = result.plan.hosts[0].local[0];
    EXPECT_LT(Difference(result.document, dense, first.begin, first.end), kTolerance) << c.Name();
    // The other hosts differ from it. If they did not, the contract would test nothing.
    EXPECT_GT(Difference(result.document, dense), 1e-2) << c.Name();
    engine.cache().Release(result.kv);
  }
}

void CheckRanksDoNotMatter(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const int64_t n : {13, 97}) {
    for (const char* compressor : kCompressors) {
      const PrefillCase c = TypicalCase(compressor, 24, n);  // 24 divides by 1, 2, 3, 4, 8 ranks
      auto result = engine.Prefill(c);
      EXPECT_LT(Difference(result.document, OnOneRank(c).document), kTolerance) << c.Name();
      EXPECT_TRUE(engine.EqualOnAllRanks(result.document.values));
      engine.cache().Release(result.kv);
    }
  }
}

void CheckOverlapDoesNotMatter(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const int64_t n : {3, 13, 97}) {  // with 3, some hosts have no tokens
    for (const int virtual_hosts : {1, 2}) {
      for (const int64_t row_cost : {0, 20}) {
        PrefillCase c = TypicalCase("retaining_heads", engine.ranks() * virtual_hosts, n);
        c.options.row_cost_pairs = row_cost;
        auto at_once = engine.Prefill(c);
        c.overlap = true;
        auto overlapped = engine.Prefill(c);
        EXPECT_LT(Difference(at_once.document, overlapped.document), kTolerance) << c.Name();
        engine.cache().Release(at_once.kv);
        engine.cache().Release(overlapped.kv);
      }
    }
  }
}

void CheckCostModelCountsWhatIsSent(const TestRank& rank) {
  TinyEngine engine(rank);
  const auto sent = [&] {
    // On a device, stats() may count an operation a moment after its end.
    if (rank.backend->place() == kernels::Place::kDevice) absl::SleepFor(absl::Milliseconds(200));
    float bytes = 0;
    for (const auto& operation : rank.communicator.stats().operations) {
      if (operation.name != "all_reduce")  // the test's own
        bytes += static_cast<float>(operation.bytes_sent);
    }
    return bytes;
  };
  for (const StrategyInfo* strategy : Strategies()) {
    if (!strategy->supports(Shape(), engine.ranks()).ok()) continue;
    PrefillCase c = TypicalCase("random", 2 * engine.ranks(), 96);
    c.strategy = strategy->name;
    c.options.hosts = HostsOf(*strategy, engine.ranks(), c.options.hosts);
    const float before = sent();
    auto result = engine.Prefill(c, /*with_last_output=*/false);
    const float all = engine.Reduced({sent() - before}, comm::ReduceOp::kSum)[0];
    EXPECT_EQ(
        static_cast<float>(
            PredictPrefill(result.plan, engine.ranks(), 0, Shape(), MachineSpeed()).bytes_sent),
        all)
        << c.Name();
    engine.cache().Release(result.kv);
  }
}

void CheckAnchorsAreEqual(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const int virtual_hosts : {1, 2}) {
    const PrefillCase c =
        TypicalCase("query_aware", std::max(2, engine.ranks() * virtual_hosts), 250);
    auto result = engine.Prefill(c);
    // Every rank has anchor rows here: rank 0 scores by the anchor's query rows.
    ASSERT_EQ(result.anchor.rows, 12) << c.Name();
    const std::vector<float> top = engine.Reduced(result.anchor.values, comm::ReduceOp::kMax);
    EXPECT_LT(Difference(result.anchor, {12, top}), kTolerance) << c.Name();
    EXPECT_LT(Difference(result.anchor, OnOneRank(c).anchor), kTolerance) << c.Name();
    engine.cache().Release(result.kv);
  }
}

void CheckStarIsApbWithoutPassing(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const int64_t n : {3, 50, 77}) {
    PrefillCase star{.strategy = "star",
                     .options = {.hosts = 2 * engine.ranks()},
                     .document_length = n,
                     .embedded_query = Text(500, 506),  // star ignores it
                     .query_insert_position = 2};
    PrefillCase apb = star;
    apb.strategy = "apb";
    apb.embedded_query.clear();
    apb.options.anchor_length = kEverything;  // cut to the first shard's length
    apb.options.passing_length = 0;
    auto with_star = engine.Prefill(star), with_apb = engine.Prefill(apb);
    EXPECT_EQ(with_star.plan.anchor, with_apb.plan.anchor);
    EXPECT_EQ(with_star.document.values, with_apb.document.values) << star.Name();
    engine.cache().Release(with_star.kv);
    engine.cache().Release(with_apb.kv);
  }
}

void CheckKvIsWholeAndReleased(const TestRank& rank) {
  TinyEngine engine(rank);
  for (const StrategyInfo* strategy : Strategies()) {
    if (!strategy->supports(Shape(), engine.ranks()).ok()) continue;
    for (const int64_t n : {0, 2, 70}) {
      PrefillCase c = TypicalCase("random", 2 * engine.ranks(), n);
      c.strategy = strategy->name;
      c.options.hosts = HostsOf(*strategy, engine.ranks(), c.options.hosts);
      auto result = engine.Prefill(c, /*with_last_output=*/false);
      EXPECT_EQ(result.kv.slot_count(),
                DocumentTokensOfRank(result.plan, engine.ranks(), engine.rank()));
      std::vector<float> copies(n, 0.0f);
      for (const int32_t position : result.kv.positions) copies[position] += 1;
      EXPECT_EQ(engine.Reduced(copies, comm::ReduceOp::kSum), std::vector<float>(n, 1.0f))
          << c.Name();
      engine.cache().Release(result.kv);
      EXPECT_EQ(engine.cache().pool().used_count(), 0);
    }
  }
}

void CheckNewRowsAreExact(const TestRank& rank) {
  TinyEngine engine(rank);
  // With 5 tokens on 4 ranks, one shard is empty. With 0, the whole prompt is query.
  for (const int64_t n : {0, 1, 5, 61}) {
    const std::vector<int32_t> text = Text(0, n + 14);
    const Hidden dense = Dense(text);
    auto document =
        engine.Prefill(ExactCase("random", engine.ranks(), n), /*with_last_output=*/false);
    const int64_t document_slots = document.kv.slot_count();
    const auto run = [&](int64_t begin, int64_t count) {
      const int64_t at = n + begin;
      const Hidden rows = engine.RunSpans({{.kv = &document.kv,
                                            .document_slots = document_slots,
                                            .position = at,
                                            .count = count,
                                            .owner_offset = 7}},
                                          {{text.begin() + at, text.begin() + at + count}});
      const int64_t width = static_cast<int64_t>(rows.values.size()) / count;
      const Hidden want{
          count, {dense.values.begin() + at * width, dense.values.begin() + (at + count) * width}};
      EXPECT_LT(Difference(rows, want), kTolerance) << "n=" << n << " row " << begin;
      EXPECT_TRUE(engine.EqualOnAllRanks(rows.values)) << "n=" << n << " row " << begin;
    };
    run(0, 7);  // the query in two chunks, then decode steps
    run(7, 3);
    for (int64_t i = 10; i < 14; ++i) run(i, 1);
    // The new tokens' KV is spread evenly over the ranks.
    const int64_t kept = document.kv.slot_count() - document_slots;
    EXPECT_LE(std::abs(kept * engine.ranks() - 14), engine.ranks());
    engine.cache().Release(document.kv);
  }
}

void CheckBatchesAreLikeAlone(const TestRank& rank) {
  TinyEngine engine(rank);
  constexpr int64_t kLengths[] = {40, 0, 3};
  std::vector<cache::SequenceKv> together(3), alone(3);
  std::vector<int64_t> slots(3);
  for (int s = 0; s < 3; ++s) {
    const PrefillCase c = TypicalCase("retaining_heads", engine.ranks(), kLengths[s]);
    together[s] = engine.Prefill(c, false).kv;
    alone[s] = engine.Prefill(c, false).kv;
    slots[s] = together[s].slot_count();
  }
  // Each step has another number of tokens of every sequence.
  int64_t done[3] = {};
  for (const auto& counts : {std::vector<int64_t>{4, 9, 1}, {1, 1, 6}, {1, 1, 1}}) {
    std::vector<executor::BatchTokens> batch;
    std::vector<std::vector<int32_t>> tokens;
    for (int s = 0; s < 3; ++s) {
      const int64_t at = kLengths[s] + done[s];
      batch.push_back({&together[s], slots[s], at, counts[s], static_cast<uint64_t>(s)});
      tokens.push_back(Text(1000 * s + at, 1000 * s + at + counts[s]));
      done[s] += counts[s];
    }
    const Hidden rows = engine.RunSpans(batch, tokens);
    int64_t at = 0;
    for (int s = 0; s < 3; ++s) {
      batch[s].kv = &alone[s];
      const Hidden single = engine.RunSpans({batch[s]}, {tokens[s]});
      const int64_t width = static_cast<int64_t>(rows.values.size()) / rows.rows;
      const Hidden part{
          counts[s],
          {rows.values.begin() + at * width, rows.values.begin() + (at + counts[s]) * width}};
      EXPECT_LT(Difference(single, part), kTolerance) << "sequence " << s;
      at += counts[s];
    }
  }
}

}  // namespace apb::context_parallel
