// Goal: the strategies keep the exactness contract of docs/algorithms.md. Method: a tiny random
// float32 model on 1 to 4 ranks as threads, compared with plain causal attention and with itself;
// faults and bad input; a kernel call with permuted passing keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <random>
#include <thread>

#include "engine/comm/local_communicator.h"
#include "engine/context_parallel/apb/compressor.h"
#include "tests/engine/context_parallel/contract.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/reference/naive_ops.h"

namespace apb::context_parallel {
namespace {

using testing::HasSubstr;

void OnRanks(int ranks, const std::function<void(comm::Communicator&)>& body) {
  auto group = comm::CreateLocalGroup(ranks, absl::Minutes(2));
  std::vector<std::thread> threads;
  for (auto& rank : group) threads.emplace_back([&] { body(*rank); });
  for (std::thread& thread : threads) thread.join();
}

class Contract : public testing::TestWithParam<int> {};

TEST_P(Contract, PassingEverythingIsFull) { OnRanks(GetParam(), CheckPassingEverythingIsFull); }
TEST_P(Contract, ExactStrategiesAreFull) { OnRanks(GetParam(), CheckExactStrategiesAreFull); }
TEST_P(Contract, BatchesOverPrefixesAreFull) {
  OnRanks(GetParam(), CheckBatchesOverPrefixesAreFull);
}
TEST_P(Contract, RingsAreLikeTheOracle) { OnRanks(GetParam(), CheckRingsAreLikeTheOracle); }
TEST_P(Contract, HostZeroIsFull) { OnRanks(GetParam(), CheckHostZeroIsFull); }
TEST_P(Contract, RanksDoNotMatter) { OnRanks(GetParam(), CheckRanksDoNotMatter); }
TEST_P(Contract, OverlapDoesNotMatter) { OnRanks(GetParam(), CheckOverlapDoesNotMatter); }
TEST_P(Contract, CostModelCountsWhatIsSent) { OnRanks(GetParam(), CheckCostModelCountsWhatIsSent); }
TEST_P(Contract, AnchorsAreEqual) { OnRanks(GetParam(), CheckAnchorsAreEqual); }
TEST_P(Contract, StarIsApbWithoutPassing) { OnRanks(GetParam(), CheckStarIsApbWithoutPassing); }
TEST_P(Contract, KvIsWholeAndReleased) { OnRanks(GetParam(), CheckKvIsWholeAndReleased); }
TEST_P(Contract, NewRowsAreExact) { OnRanks(GetParam(), CheckNewRowsAreExact); }
TEST_P(Contract, BatchesAreLikeAlone) { OnRanks(GetParam(), CheckBatchesAreLikeAlone); }
INSTANTIATE_TEST_SUITE_P(Ranks, Contract, testing::Values(1, 2, 3, 4));

TEST(Strategy, OneHostIsFullToTheBit) {
  OnRanks(1, [](comm::Communicator& communicator) {
    TinyEngine engine(communicator);
    for (const int64_t n : {1, 40}) {
      const Hidden full = engine.Prefill({.strategy = "full", .document_length = n}).document;
      for (const char* strategy : {"apb", "star"}) {
        PrefillCase c{.strategy = strategy,
                      .compressor = "query_aware",
                      .document_length = n,
                      .embedded_query = Text(7, 12)};
        EXPECT_EQ(engine.Prefill(c).document.values, full.values) << c.Name();
      }
      // The same tokens as query tokens: another kernel computes the same function.
      EXPECT_LT(Difference(full, Dense(Text(0, n))), 1e-4);
    }
    // A single host exchanges nothing: the only collectives are the test's own.
    for (const auto& operation : communicator.stats().operations)
      EXPECT_EQ(operation.name, "all_reduce");
  });
}

TEST(Strategy, NoCollectiveInTheLastLayerAndNoneForStar) {
  for (const char* strategy : {"apb", "star"}) {
    OnRanks(2, [&](comm::Communicator& communicator) {
      TinyEngine engine(communicator);
      engine.Prefill({.strategy = strategy,
                      .compressor = "random",
                      .options = {.hosts = 4},
                      .document_length = 64},
                     /*with_last_output=*/false);
      int64_t gathers = 0;
      for (const auto& operation : communicator.stats().operations)
        if (operation.name == "all_gather") gathers = operation.calls;
      EXPECT_EQ(gathers, std::string_view(strategy) == "apb" ? 2 : 0);  // of three layers
    });
  }
}

// Host 0 passes on fewer tokens than the others, because its head is in the anchor.
TEST(Strategy, UnequalPassingLengths) {
  OnRanks(2, [](comm::Communicator& communicator) {
    TinyEngine engine(communicator);
    const PrefillCase c{.strategy = "apb",
                        .compressor = "retaining_heads",
                        .options = {.hosts = 4, .anchor_length = 10, .passing_length = 11},
                        .document_length = 47,
                        .embedded_query = Text(60, 62)};
    auto result = engine.Prefill(c);
    EXPECT_EQ(result.plan.hosts[0].passing_length, 4);
    EXPECT_EQ(result.plan.hosts[1].passing_length, 11);
    auto alone = comm::CreateLocalGroup(1, absl::Minutes(1));
    EXPECT_LT(Difference(result.document, TinyEngine(*alone[0]).Prefill(c).document), 1e-4);
  });
}

// Embedded queries that fit into the default anchor, and one that is cut.
TEST(Strategy, LongQueries) {
  OnRanks(2, [](comm::Communicator& communicator) {
    TinyEngine engine(communicator);
    for (const int64_t query : {1, 20, 300}) {
      PrefillCase c{.strategy = "apb",
                    .compressor = "query_aware",
                    .options = {.hosts = 2},
                    .document_length = 64,
                    .embedded_query = Text(100, 100 + query),
                    .query_insert_position = 4};
      auto result = engine.Prefill(c);
      EXPECT_LE(result.anchor.rows, 32) << c.Name();
      for (const float x : result.document.values) ASSERT_TRUE(std::isfinite(x)) << c.Name();
      engine.cache().Release(result.kv);
    }
  });
}

TEST(Strategy, BadInputIsAnErrorOfTheCaller) {
  OnRanks(2, [](comm::Communicator& communicator) {
    TinyEngine engine(communicator);
    const auto expect = [&](PrefillCase c, absl::StatusCode code, const char* text) {
      const absl::Status status = engine.TryPrefill(c);
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
      EXPECT_EQ(engine.cache().pool().used_count(), 0);
    };
    const PrefillCase good{
        .strategy = "apb", .compressor = "random", .options = {.hosts = 2}, .document_length = 64};
    EXPECT_TRUE(engine.TryPrefill(good).ok());
    PrefillCase c = good;
    c.strategy = "ring";
    expect(c, absl::StatusCode::kInvalidArgument, "ring");
    c = good;
    c.compressor = "";
    expect(c, absl::StatusCode::kInvalidArgument, "compressor");
    c.compressor = "zip";
    expect(c, absl::StatusCode::kInvalidArgument, "zip");
    c = good;
    c.options.hosts = 3;
    expect(c, absl::StatusCode::kInvalidArgument, "hosts=3");
    c = good;
    c.embedded_query = {5, 4711};
    expect(c, absl::StatusCode::kInvalidArgument, "4711");
    c = good;
    c.document_length = 200 * 8 * 2 + 2;
    expect(c, absl::StatusCode::kResourceExhausted, "KV cache");
  });
}

TEST(Strategy, MissingRetainingHeadsAreTold) {
  const TinyModel& tiny = TinyModel::Get();
  auto weights = *model::Weights::Random(tiny.config, 1, 0, *tiny.backend);
  const auto compressor = CreateCompressor("retaining_heads", *weights, *tiny.backend);
  EXPECT_EQ(compressor.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(compressor.status().message()), HasSubstr("retaining_heads.safetensors"));
}

// If a rank never comes, the others get an error and do not hang.
TEST(Strategy, ALostRankIsAnError) {
  auto group = comm::CreateLocalGroup(2, absl::Milliseconds(100));
  TinyEngine engine(*group[0]);
  EXPECT_THROW(engine.Prefill({.strategy = "apb",
                               .compressor = "random",
                               .options = {.hosts = 2},
                               .document_length = 64}),
               std::runtime_error);
}

// The max-pool's window ends at the first and last row. It does not see zeros beyond them, which
// would win over negative scores.
TEST(Strategy, PoolingAtTheEdges) {
  using reference::HostTensor;
  auto backend = *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  auto stream = *backend->NewStream();
  for (const int64_t rows : {1, 2, 3, 9}) {
    HostTensor scores = HostTensor::Zeros(kernels::DType::kF32, {rows, 2}),
               pooled = HostTensor::Zeros(kernels::DType::kF32, {rows, 2});
    for (int64_t t = 0; t < rows; ++t) {  // head 0 falls, head 1 rises
      scores.view.as<float>()[t * 2] = static_cast<float>(-5 - t);
      scores.view.as<float>()[t * 2 + 1] = static_cast<float>(-50 + t);
    }
    backend->MaxPoolRows(scores.view, 5, pooled.view, *stream);
    ASSERT_TRUE(stream->Synchronize().ok());
    for (int64_t t = 0; t < rows; ++t) {
      EXPECT_EQ(reference::At(pooled.view, t, 0), -5 - std::max<int64_t>(0, t - 2));
      EXPECT_EQ(reference::At(pooled.view, t, 1), -50 + std::min<int64_t>(rows - 1, t + 2));
    }
  }
}

// The order of a passing block's keys does not matter.
TEST(Strategy, PassingKeysMayBePermuted) {
  using reference::HostTensor;
  std::mt19937 rng(3);
  auto backend = *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  auto stream = *backend->NewStream();
  constexpr int64_t kPassing = 29, kLocal = 18;
  constexpr auto kF32 = kernels::DType::kF32;
  HostTensor q = HostTensor::Random(kF32, {kLocal, 4, 16}, rng);
  HostTensor k = HostTensor::Random(kF32, {kPassing, 2, 16}, rng),
             v = HostTensor::Random(kF32, {kPassing, 2, 16}, rng);
  HostTensor local_k = HostTensor::Random(kF32, {kLocal, 2, 16}, rng),
             local_v = HostTensor::Random(kF32, {kLocal, 2, 16}, rng);
  std::vector<int32_t> numbers(kPassing), local_positions(kLocal);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::iota(local_positions.begin(), local_positions.end(), 100);
  HostTensor positions = HostTensor::Integers(local_positions);
  const auto attend = [&](const kernels::TensorView& keys, const kernels::TensorView& values) {
    const kernels::KeySegment segments[] = {
        {.k = keys,
         .v = values,
         .visible_to_group = {kernels::Visibility::kAll, kernels::Visibility::kAll}},
        {.k = local_k.view, .v = local_v.view, .positions = positions.view}};
    HostTensor out = HostTensor::Zeros(kF32, {kLocal, 4, 16});
    backend->Attention({.q = q.view,
                        .q_positions = positions.view,
                        .keys = segments,
                        .scale = 0.25f,
                        .out = out.view},
                       *stream);
    EXPECT_TRUE(stream->Synchronize().ok());
    return reference::ToDoubles(out.view);
  };
  const std::vector<double> before = attend(k.view, v.view);
  // Each KV head has an order of its own, as with TopKPerHead.
  HostTensor indices = HostTensor::Zeros(kernels::DType::kI32, {2, kPassing});
  for (int64_t h = 0; h < 2; ++h) {
    std::shuffle(numbers.begin(), numbers.end(), rng);
    std::copy(numbers.begin(), numbers.end(), indices.view.as<int32_t>() + h * kPassing);
  }
  HostTensor k2 = HostTensor::Zeros(kF32, {kPassing, 2, 16}),
             v2 = HostTensor::Zeros(kF32, {kPassing, 2, 16});
  backend->Run(kernels::GatherRowsPerHeadArgs{k.view, indices.view, k2.view}, *stream);
  backend->Run(kernels::GatherRowsPerHeadArgs{v.view, indices.view, v2.view}, *stream);
  const std::vector<double> after = attend(k2.view, v2.view);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i], after[i], 1e-5);
}

}  // namespace
}  // namespace apb::context_parallel
