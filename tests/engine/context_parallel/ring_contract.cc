// The contract's checks of ring strategies and full: batches of documents over cached prefixes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/context_parallel/strategies.h"
#include "tests/engine/context_parallel/contract.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/reference/naive_ops.h"

namespace apb::context_parallel {
namespace {

using kernels::DType;
using kernels::TensorView;
using reference::HostTensor;

// The strategies that can start from a cached prefix of which each of `ranks` ranks has a part.
std::vector<std::string> Strategies(int ranks) {
  std::vector<std::string> names;
  for (const StrategyInfo* strategy : context_parallel::Strategies()) {
    if (strategy->starts_from_prefix && HostsOf(*strategy, ranks, ranks) == ranks)
      names.emplace_back(strategy->name);
  }
  return names;
}

Hidden Part(const Hidden& all, int64_t begin, int64_t end) {
  const int64_t width = static_cast<int64_t>(all.values.size()) / all.rows;
  return {end - begin, {all.values.begin() + begin * width, all.values.begin() + end * width}};
}

}  // namespace

void CheckBatchesOverPrefixesAreFull(const TestRank& rank) {
  TinyEngine engine(rank);
  std::mt19937 rng(7);  // the same on all ranks
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  for (const std::string& strategy : Strategies(engine.ranks())) {
    std::vector<cache::SequenceKv> kv(3);
    std::vector<TinyEngine::BatchDocument> batch;
    std::vector<Hidden> dense;
    for (size_t i = 0; i < kv.size(); ++i) {
      // The cached tokens are a document, computed by any exact strategy, and query tokens after
      // it. One of the three sequences has no cached tokens. One has a single token that is not
      // cached.
      const int64_t first = i == 1 ? 0 : 1 + below(30), rows = i == 1 ? 0 : below(20),
                    left = i == 2 ? 1 : 1 + below(60), cached = first + rows;
      const int64_t begin = 1000 * static_cast<int64_t>(i);
      const std::vector<int32_t> text = Text(begin, begin + cached + left + 2);
      if (first > 0) {
        engine.PrefillBatch(below(2) == 0 ? "full" : "ring_kv",
                            {{.text = {text.begin(), text.begin() + first}, .kv = &kv[i]}});
      }
      if (rows > 0) {
        engine.RunSpans({{.kv = &kv[i],
                          .document_slots = kv[i].slot_count(),
                          .position = first,
                          .count = rows}},
                        {{text.begin() + first, text.begin() + cached}});
      }
      dense.push_back(Dense(text));
      batch.push_back({.text = {text.begin(), text.end() - 2}, .cached = cached, .kv = &kv[i]});
    }
    const std::vector<Hidden> hidden = engine.PrefillBatch(strategy, batch);
    for (size_t i = 0; i < kv.size(); ++i) {
      const int64_t length = static_cast<int64_t>(batch[i].text.size());
      const std::string name = absl::StrCat(strategy, " ", batch[i].cached, " of ", length);
      EXPECT_LT(Difference(hidden[i], Part(dense[i], batch[i].cached, length)), 1e-4) << name;
      // Later tokens find the KV.
      const Hidden next = engine.RunSpans(
          {{.kv = &kv[i], .document_slots = kv[i].slot_count(), .position = length, .count = 2}},
          {Text(1000 * static_cast<int64_t>(i) + length,
                1000 * static_cast<int64_t>(i) + length + 2)});
      EXPECT_LT(Difference(next, Part(dense[i], length, length + 2)), 1e-4) << name;
      engine.cache().Release(kv[i]);
    }
    EXPECT_EQ(engine.cache().pool().used_count(), 0);
  }
}

namespace {

constexpr int64_t kQueryHeads = 4, kKvHeads = 2, kHeadDim = 16;

// One document of random numbers. The KV of its first `cached` tokens is on random ranks.
struct RandomDocument {
  int64_t cached = 0, length = 0;
  HostTensor q, k, v;
  std::vector<int> keeper;  // the rank that has the KV of each cached token
};

RandomDocument MakeDocument(DType dtype, int ranks, std::mt19937& rng) {
  RandomDocument d;
  d.cached = rng() % 3 == 0 ? 0 : static_cast<int64_t>(rng() % 50);
  d.length = d.cached + 1 + static_cast<int64_t>(rng() % (rng() % 3 == 0 ? 3 : 70));
  d.q = HostTensor::Random(dtype, {d.length, kQueryHeads, kHeadDim}, rng);
  d.k = HostTensor::Random(dtype, {d.length, kKvHeads, kHeadDim}, rng);
  d.v = HostTensor::Random(dtype, {d.length, kKvHeads, kHeadDim}, rng);
  const int fewer = 1 + static_cast<int>(rng() % ranks);  // the other ranks have no cached token
  for (int64_t t = 0; t < d.cached; ++t) d.keeper.push_back(static_cast<int>(rng() % fewer));
  return d;
}

// Plain causal attention in double, [length, query heads, head dim].
std::vector<double> Oracle(const RandomDocument& d) {
  std::vector<int32_t> numbers;
  for (int64_t t = 0; t < d.length; ++t) numbers.push_back(static_cast<int32_t>(t));
  const HostTensor positions = HostTensor::Integers(numbers);
  const kernels::KeySegment keys{.k = d.k.view, .v = d.v.view, .positions = positions.view};
  HostTensor out = HostTensor::Zeros(DType::kF32, {d.length, kQueryHeads, kHeadDim});
  return reference::Attention({.q = d.q.view,
                               .q_positions = positions.view,
                               .keys = {&keys, 1},
                               .scale = 0.25f,
                               .out = out.view})
      .out;
}

void CopyRow(const HostTensor& from, int64_t i, HostTensor& to, int64_t j) {
  const size_t bytes = from.bytes.size() / from.view.shape[0];
  std::memcpy(to.bytes.data() + j * bytes, from.bytes.data() + i * bytes, bytes);
}

// This rank's part of one layer of a prefill.
class LayerUnderTest {
 public:
  LayerUnderTest(DType dtype, const TestRank& rank)
      : dtype_(dtype), communicator_(rank.communicator), backend_(rank.backend) {
    stream_ = *backend_->NewStream();
    cache_ = *cache::PagedKvCache::Create({.layers = 2,
                                           .kv_heads = kKvHeads,
                                           .head_dim = kHeadDim,
                                           .block_size = 4,
                                           .block_count = 100,
                                           .dtype = dtype},
                                          *backend_);
  }

  // Largest difference from the oracle over this rank's rows.
  double Run(const std::string& strategy, const std::vector<RandomDocument>& documents) {
    constexpr int kLayer = 1;
    const int rank = communicator_.rank();
    std::vector<ShardPlan> plans;
    std::vector<StrategyDocument> seen;
    std::vector<std::pair<size_t, int64_t>> rows;  // document and token of each of this rank's rows
    std::vector<cache::SequenceKv> kv(documents.size());
    for (size_t i = 0; i < documents.size(); ++i) {
      const RandomDocument& d = documents[i];
      plans.push_back(*MakeShardPlan(
          strategy, {.document_length = d.length, .cached_length = d.cached, .query_length = 1},
          {.hosts = communicator_.size()}));
      std::vector<int64_t> slots;
      for (int64_t t = 0; t < d.cached; ++t) {
        if (d.keeper[t] != rank) continue;
        const int32_t position = static_cast<int32_t>(t);
        slots.push_back((*cache_->Reserve(kv[i], {&position, 1}))[0]);
        const core::Tensor slot = Placed(TensorView::Contiguous(&slots.back(), DType::kI64, {1}));
        const core::Tensor k = Placed(d.k.view.Rows(t, t + 1)), v = Placed(d.v.view.Rows(t, t + 1));
        backend_->Rope({.x = k.view(),
                        .store = {slot.view(), cache_->keys(kLayer), cache_->values(kLayer)},
                        .v = v.view()},
                       *stream_);
        EXPECT_TRUE(stream_->Synchronize().ok());
      }
      seen.push_back({.cached_slots = slots, .prefix_length = d.cached});
    }
    for (size_t i = 0; i < documents.size(); ++i) {
      seen[i].plan = &plans[i];
      for (const TokenSpan& span : plans[i].hosts[rank].local) {
        for (int64_t t = span.begin; t < span.end; ++t) rows.emplace_back(i, t);
      }
    }
    const double worst = Attend(documents, seen, rows, kLayer);
    for (cache::SequenceKv& sequence : kv) cache_->Release(sequence);
    return worst;
  }

 private:
  // A copy in the backend's memory.
  core::Tensor Placed(const TensorView& view) { return *core::Tensor::CopyOf(*backend_, view); }
  double Attend(const std::vector<RandomDocument>& documents,
                const std::vector<StrategyDocument>& seen,
                const std::vector<std::pair<size_t, int64_t>>& rows, int layer) {
    const int64_t count = static_cast<int64_t>(rows.size());
    HostTensor q = HostTensor::Zeros(dtype_, {count, kQueryHeads, kHeadDim}),
               k = HostTensor::Zeros(dtype_, {count, kKvHeads, kHeadDim}),
               v = HostTensor::Zeros(dtype_, {count, kKvHeads, kHeadDim}),
               out = HostTensor::Zeros(dtype_, {count, kQueryHeads, kHeadDim});
    for (int64_t r = 0; r < count; ++r) {
      const auto [i, t] = rows[r];
      CopyRow(documents[i].q, t, q, r);
      CopyRow(documents[i].k, t, k, r);
      CopyRow(documents[i].v, t, v, r);
    }
    const core::Tensor placed_q = Placed(q.view), placed_k = Placed(k.view),
                       placed_v = Placed(v.view), placed_out = Placed(out.view);
    auto ring = seen[0].plan->strategy->create(seen,
                                               {.query_heads = kQueryHeads,
                                                .kv_heads = kKvHeads,
                                                .cache = *cache_,
                                                .backend = *backend_,
                                                .communicator = communicator_},
                                               *stream_);
    EXPECT_TRUE(ring.ok()) << ring.status();
    const absl::Status status = (*ring)->Attend({.layer = layer,
                                                 .scale = 0.25f,
                                                 .q = placed_q.view(),
                                                 .k = placed_k.view(),
                                                 .v = placed_v.view(),
                                                 .out = placed_out.view()},
                                                *stream_);
    EXPECT_TRUE(status.ok()) << status;
    backend_->Copy(placed_out.view(), out.view, *stream_);
    EXPECT_TRUE(stream_->Synchronize().ok());
    std::vector<std::vector<double>> wanted;
    for (const RandomDocument& d : documents) wanted.push_back(Oracle(d));
    const std::vector<double> got = reference::ToDoubles(out.view);
    constexpr int64_t kWidth = kQueryHeads * kHeadDim;
    double worst = 0;
    for (int64_t r = 0; r < count; ++r) {
      const auto [i, t] = rows[r];
      for (int64_t c = 0; c < kWidth; ++c) {
        const double difference = std::abs(got[r * kWidth + c] - wanted[i][t * kWidth + c]);
        worst = difference <= worst ? worst : difference;  // keeps a NaN
      }
    }
    return worst;
  }

  const DType dtype_;
  comm::Communicator& communicator_;
  const std::shared_ptr<kernels::Backend> backend_;
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<cache::PagedKvCache> cache_;
};

}  // namespace

void CheckRingsAreLikeTheOracle(const TestRank& rank) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    LayerUnderTest layer(dtype, rank);
    std::mt19937 rng(23);  // the same on all ranks
    for (const std::string& strategy : Strategies(rank.communicator.size())) {
      for (int trial = 0; trial < 6; ++trial) {
        std::vector<RandomDocument> documents(1 + rng() % 4);
        for (RandomDocument& d : documents) d = MakeDocument(dtype, rank.communicator.size(), rng);
        // With bf16, probabilities and outputs of size 1 are rounded to 8 bits.
        EXPECT_LT(layer.Run(strategy, documents), dtype == DType::kF32 ? 2e-5 : 2e-2)
            << strategy << " trial " << trial;
      }
    }
  }
}

}  // namespace apb::context_parallel
