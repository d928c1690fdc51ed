// Goal: all operations but attention equal the float64 oracle on every backend and code path.
// Method: random shapes with 0 and 1 rows, odd widths, strides. Tolerance: one rounding of the
// output (2^-8 relative for bf16, 2^-11 for f16) plus float accumulation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/time/clock.h"
#include "tests/kernels/backends.h"
#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;
using reference::ToDoubles;

class Ops : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam(), 2);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
    stream_ = *backend_->NewStream();
  }
  void Expect(const std::vector<double>& want, const TensorView& got, DType dtype,
              double scale = 1.0) {
    ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    const std::vector<double> values = ToDoubles(got);
    ASSERT_EQ(want.size(), values.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const double tolerance = dtype == DType::kF32 ? scale * 2e-5
                                                    : (1.28 * std::abs(want[i]) + 0.256 * scale) *
                                                          reference::Roundoff(dtype);
      ASSERT_NEAR(want[i], values[i], tolerance) << "element " << i;
    }
  }
  // Rows and widths of the elementwise operations.
  static std::vector<std::pair<int64_t, int64_t>> Shapes() {
    std::vector<std::pair<int64_t, int64_t>> shapes;
    for (int64_t rows : {0, 1, 17}) {
      for (int64_t width : {64, 80, 100}) shapes.emplace_back(rows, width);
    }
    return shapes;
  }
  HostTensor RandomPositions(int64_t rows, int64_t end) {
    std::vector<int32_t> positions(rows);
    for (int32_t& p : positions) p = static_cast<int32_t>(rng_() % end);
    return HostTensor::Integers(positions);
  }
  // The rotary frequencies of `rotary` dimensions.
  static HostTensor Frequencies(int64_t rotary) {
    HostTensor frequencies = HostTensor::Zeros(DType::kF32, {rotary / 2});
    for (int64_t i = 0; i < rotary / 2; ++i)
      frequencies.view.as<float>()[i] = std::pow(10000.0f, -2.0f * i / rotary);
    return frequencies;
  }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::mt19937 rng_{TestSeed(3)};
};

TEST_P(Ops, Linear) {
  for (DType dtype : TypesOf(*backend_)) {
    // The limits of the code paths: dot products up to 1, 2, 8 or 18 rows, AMX tiles up to 32 rows,
    // then panels or oneDNN.
    for (int64_t rows : {0, 1, 2, 3, 5, 8, 9, 16, 17, 18, 19, 32, 33, 130}) {
      for (auto [in, out] : {std::pair<int64_t, int64_t>{64, 48}, {100, 7}, {96, 15}, {32, 601}}) {
        HostTensor x = HostTensor::Random(dtype, {rows, in + 3}, rng_),
                   w = HostTensor::Random(dtype, {out, in}, rng_, 0.1f);
        HostTensor bias = HostTensor::Random(dtype, {out}, rng_);
        for (DType out_type : {dtype, DType::kF32}) {
          HostTensor y = HostTensor::Random(out_type, {rows, out + 2}, rng_);
          LinearArgs args{.x = x.view.Columns(0, in),
                          .weight = w.view,
                          .bias = bias.view,
                          .out = y.view.Columns(0, out)};
          std::vector<double> want = reference::Linear(args);
          backend_->Linear(args, *stream_);
          Expect(want, args.out, out_type, dtype == DType::kF32 ? 1 : 4);
          args.bias = {};
          args.accumulate = true;
          want = reference::Linear(args);
          const std::vector<double> before = ToDoubles(args.out);
          for (size_t i = 0; i < want.size(); ++i) want[i] += before[i];
          backend_->Linear(args, *stream_);
          Expect(want, args.out, out_type, dtype == DType::kF32 ? 1 : 4);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Ops, LinearDoesNotDependOnThreads) {
  if (GetParam() == "cuda") GTEST_SKIP() << "of the CPU";
  for (int64_t rows : {1, 3, 20}) {
    HostTensor x = HostTensor::Random(DType::kBF16, {rows, 96}, rng_),
               w = HostTensor::Random(DType::kBF16, {601, 96}, rng_);
    std::vector<std::vector<double>> results;
    for (int threads : {1, 2, 3}) {
      auto backend = *MakeTestBackend(GetParam(), threads);
      HostTensor y = HostTensor::Zeros(DType::kF32, {rows, 601});
      backend->Linear({.x = x.view, .weight = w.view, .bias = {}, .out = y.view}, *stream_);
      ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
      results.push_back(ToDoubles(y.view));
    }
    EXPECT_EQ(results[0], results[1]) << rows << " rows";
    EXPECT_EQ(results[0], results[2]) << rows << " rows";
  }
}

TEST_P(Ops, RmsNorm) {
  for (DType dtype : TypesOf(*backend_)) {
    for (const auto& [rows, n] : Shapes()) {
      HostTensor x = HostTensor::Random(dtype, {rows, 3, n}, rng_),
                 w = HostTensor::Random(dtype, {n}, rng_);
      HostTensor y = HostTensor::Zeros(dtype, {rows, 3, n});
      backend_->RmsNorm(x.view, w.view, 1e-5f, y.view, *stream_);
      Expect(reference::RmsNorm(x.view, w.view, 1e-5), y.view, dtype);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Ops, Rope) {
  for (DType dtype : TypesOf(*backend_)) {
    for (const auto& [rows, n] : Shapes()) {
      HostTensor x = HostTensor::Random(dtype, {rows, 3, n}, rng_);
      HostTensor at = RandomPositions(rows, 100000), freq = Frequencies(n);
      RopeArgs rope{
          .x = x.view, .positions = at.view, .inv_freq = freq.view, .attention_factor = 1.1f};
      const std::vector<double> want = reference::Rope(rope);
      backend_->Rope(rope, *stream_);
      Expect(want, x.view, dtype);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Ops, SiluMul) {
  for (DType dtype : TypesOf(*backend_)) {
    for (const auto& [rows, n] : Shapes()) {
      HostTensor gate = HostTensor::Random(dtype, {rows, n}, rng_, 4.0f),
                 up = HostTensor::Random(dtype, {rows, n}, rng_);
      HostTensor out = HostTensor::Zeros(dtype, {rows, n});
      backend_->SiluMul(gate.view, up.view, out.view, *stream_);
      Expect(reference::SiluMul(gate.view, up.view), out.view, dtype);
      backend_->SiluMul(gate.view, {}, out.view, *stream_);
      Expect(reference::SiluMul(gate.view, {}), out.view, dtype);
      if (dtype != DType::kF32) {  // f32 sums over ranks become the model's type
        HostTensor wide = HostTensor::Random(DType::kF32, {rows, n}, rng_, 4.0f);
        backend_->SiluMul(wide.view, {}, out.view, *stream_);
        Expect(reference::SiluMul(wide.view, {}), out.view, dtype);
      }
      if (HasFatalFailure()) return;
    }
  }
}

// Alone, and with the norm in one pass: both leave the same residual.
TEST_P(Ops, Accumulate) {
  for (DType dtype : TypesOf(*backend_)) {
    for (const auto& [rows, n] : Shapes()) {
      const HostTensor x = HostTensor::Random(DType::kF32, {rows, n}, rng_),
                       w = HostTensor::Random(dtype, {n}, rng_);
      HostTensor sums = HostTensor::Random(dtype, {rows, n}, rng_);
      std::vector<double> want = ToDoubles(sums.view);
      for (size_t i = 0; i < want.size(); ++i) want[i] += x.view.as<float>()[i];
      HostTensor residual = HostTensor::Zeros(dtype, {rows, n}),
                 normed = HostTensor::Zeros(dtype, {rows, n});
      backend_->Copy(sums.view, residual.view, *stream_);
      backend_->AccumulateRmsNorm(x.view, residual.view, w.view, 1e-5f, normed.view, *stream_);
      backend_->Accumulate(x.view, sums.view, *stream_);
      Expect(want, sums.view, dtype);
      EXPECT_EQ(ToDoubles(residual.view), ToDoubles(sums.view));
      Expect(reference::RmsNorm(residual.view, w.view, 1e-5), normed.view, dtype);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Ops, Float16RoundsToInfinityBeyondItsRange) {
  if (TypesOf(*backend_).back() != DType::kF16) GTEST_SKIP() << "computes in no f16";
  const std::vector<float> sums = {65519, 65520, -1e9f, 0x1p-24f, 0x1p-26f, 1 + 0x1p-11f, 0, 7};
  const std::vector<double> want = {65504, HUGE_VAL, -HUGE_VAL, 0x1p-24, 0, 1, 0, 7};
  HostTensor out = HostTensor::Zeros(DType::kF16, {1, 8});
  HostTensor x = HostTensor::Zeros(DType::kF32, {1, 8});
  std::copy(sums.begin(), sums.end(), x.view.as<float>());
  backend_->Accumulate(x.view, out.view, *stream_);
  ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
  EXPECT_EQ(ToDoubles(out.view), want);
}

TEST_P(Ops, MergePartials) {
  for (int64_t parts : {1, 2, 5}) {
    HostTensor outs = HostTensor::Random(DType::kF32, {parts, 9, 4, 80}, rng_);
    HostTensor lses = HostTensor::Random(DType::kF32, {parts, 9, 4}, rng_, 50.0f);
    float* sums = lses.view.as<float>();
    for (int64_t p = 0; p < parts; ++p) sums[p * 36] = -INFINITY;  // no part saw a key
    sums[1] = -INFINITY;                                           // one part is empty
    sums[2] = 1e4f;                                                // exp would overflow
    const auto want = reference::MergePartials(outs.view, lses.view);
    for (DType dtype : TypesOf(*backend_)) {
      HostTensor out = HostTensor::Zeros(dtype, {9, 4, 80});
      backend_->MergePartials(outs.view, lses.view, out.view, {}, *stream_);
      Expect(want.out, out.view, dtype);
    }
    HostTensor out = HostTensor::Zeros(DType::kF32, {9, 4, 80}),
               lse = HostTensor::Zeros(DType::kF32, {9, 4});
    backend_->MergePartials(outs.view, lses.view, out.view, lse.view, *stream_);
    Expect(want.out, out.view, DType::kF32);
    const std::vector<double> got = ToDoubles(lse.view);
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isinf(want.lse[i])) {
        EXPECT_EQ(got[i], want.lse[i]);
      } else {
        EXPECT_NEAR(got[i], want.lse[i], 1e-3);
      }
    }
    // As rings combine: the result overwrites the first part.
    TensorView first_out = outs.view, first_lse = lses.view;
    first_out.rank = 3;
    first_out.shape = {9, 4, 80, 0};
    first_out.stride = {320, 80, 1, 0};
    first_lse.rank = 2;
    first_lse.shape = {9, 4, 0, 0};
    first_lse.stride = {4, 1, 0, 0};
    backend_->MergePartials(outs.view, lses.view, first_out, first_lse, *stream_);
    Expect(want.out, first_out, DType::kF32);
    EXPECT_EQ(ToDoubles(first_lse), got);
  }
}

// Rotation of packed q and k, of all dimensions or a part of them, that also stores K and V.
TEST_P(Ops, RopeStoresKeysAndValues) {
  for (DType dtype : TypesOf(*backend_)) {
    for (const auto& [d, rotary] : {std::pair<int64_t, int64_t>{64, 64}, {80, 32}, {100, 100}}) {
      for (const int64_t rows : {0, 1, 23}) {
        const int64_t q_heads = 4, kv_heads = 2, before = rows / 3, blocks = 5, block_size = 8;
        HostTensor qkv = HostTensor::Random(dtype, {rows, (q_heads + 2 * kv_heads) * d}, rng_);
        HostTensor at = RandomPositions(rows, 1000), freq = Frequencies(rotary);
        std::vector<int64_t> all(blocks * block_size);
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), rng_);
        HostTensor slots = HostTensor::Zeros(DType::kI64, {rows - before});
        for (int64_t i = 0; i < rows - before; ++i)
          slots.view.as<int64_t>()[i] = i % 4 == 3 ? -1 : all[i];
        HostTensor k_cache = HostTensor::Zeros(dtype, {blocks, kv_heads, block_size, d}),
                   v_cache = HostTensor::Zeros(dtype, {blocks, kv_heads, block_size, d});
        const int64_t v_begin = (q_heads + kv_heads) * d;
        RopeArgs args{.x = qkv.view.Columns(0, v_begin).SplitHeads(d),
                      .positions = at.view,
                      .inv_freq = freq.view,
                      .store = {slots.view, k_cache.view, v_cache.view},
                      .v = qkv.view.Columns(v_begin, v_begin + kv_heads * d).SplitHeads(d),
                      .store_begin = before};
        const std::vector<double> rotated = reference::Rope(args), values = ToDoubles(args.v);
        std::vector<double> want_k(blocks * kv_heads * block_size * d, 0), want_v = want_k;
        for (int64_t i = 0; i < rows - before; ++i) {
          const int64_t slot = slots.view.as<int64_t>()[i];
          for (int64_t e = 0; slot >= 0 && e < kv_heads * d; ++e) {
            const int64_t to =
                ((slot / block_size * kv_heads + e / d) * block_size + slot % block_size) * d +
                e % d;
            want_k[to] = rotated[(before + i) * v_begin + q_heads * d + e];
            want_v[to] = values[(before + i) * kv_heads * d + e];
          }
        }
        backend_->Rope(args, *stream_);
        Expect(rotated, args.x, dtype);
        Expect(values, args.v, dtype);
        Expect(want_k, k_cache.view, dtype);
        Expect(want_v, v_cache.view, dtype);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Ops, KeyScores) {
  for (DType dtype : TypesOf(*backend_)) {
    const HostTensor k = HostTensor::Random(dtype, {200, 2, 80}, rng_),
                     query = HostTensor::Random(dtype, {7, 6, 80}, rng_);
    HostTensor scores = HostTensor::Zeros(DType::kF32, {200, 2});
    KeyScoreArgs args{.k = k.view, .query = query.view, .scale = 0.1f, .scores = scores.view};
    backend_->KeyScores(args, *stream_);
    Expect(reference::KeyScores(args), scores.view, DType::kF32);
  }
}

TEST_P(Ops, MaxPoolRows) {
  const int64_t rows = 200, heads = 2;
  const int radius = 2;
  const HostTensor scores = HostTensor::Random(DType::kF32, {rows, heads}, rng_);
  scores.view.as<float>()[20] = NAN;  // is ignored
  HostTensor pooled = HostTensor::Zeros(DType::kF32, {rows, heads});
  backend_->MaxPoolRows(scores.view, 2 * radius + 1, pooled.view, *stream_);
  std::vector<double> want;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      want.push_back(-HUGE_VAL);
      for (int64_t i = std::max<int64_t>(t - radius, 0); i <= std::min(t + radius, rows - 1); ++i)
        want.back() = std::max(want.back(), reference::At(scores.view, i, h));
    }
  }
  ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
  EXPECT_EQ(ToDoubles(pooled.view), want);
}

// Of equal scores the lower row wins; NaN is the lowest score.
TEST_P(Ops, TopKPerHead) {
  const int64_t rows = 200, heads = 2, count = 30;
  const int32_t nan_row = 11, begin = 10, end = 190;
  const auto score = [](int32_t t) { return t * 7 % 10; };  // many are equal
  HostTensor scores = HostTensor::Random(DType::kF32, {rows, heads}, rng_);
  for (int32_t t = 0; t < rows; ++t)
    scores.view.as<float>()[t * heads] = static_cast<float>(score(t));
  scores.view.as<float>()[nan_row * heads] = NAN;
  HostTensor indices = HostTensor::Zeros(DType::kI32, {heads, count});
  backend_->TopKPerHead({.scores = scores.view,
                         .eligible_begin = begin,
                         .eligible_end = end,
                         .count = count,
                         .indices = indices.view},
                        *stream_);
  ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
  const auto highest = [&](int64_t head, auto less_good) {
    std::vector<int32_t> order;
    for (int32_t t = begin; t < end; ++t) {
      if (head > 0 || t != nan_row) order.push_back(t);
    }
    std::stable_sort(order.begin(), order.end(), less_good);
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
  };
  const int32_t* got = indices.view.as<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(got, got + count),
            highest(0, [&](int32_t a, int32_t b) { return score(a) > score(b); }));
  EXPECT_EQ(std::vector<int32_t>(got + count, got + 2 * count),
            highest(1, [&](int32_t a, int32_t b) {
              return reference::At(scores.view, a, 1) > reference::At(scores.view, b, 1);
            }));
}

TEST_P(Ops, GatherRowsPerHead) {
  for (DType dtype : TypesOf(*backend_)) {
    const int64_t rows = 200, heads = 2, count = 30, d = 80;
    const HostTensor x = HostTensor::Random(dtype, {rows, heads, d}, rng_);
    HostTensor indices = HostTensor::Zeros(DType::kI32, {heads, count}),
               gathered = HostTensor::Zeros(dtype, {count, heads, d});
    for (int64_t i = 0; i < heads * count; ++i)
      indices.view.as<int32_t>()[i] = static_cast<int32_t>(rng_() % rows);
    backend_->Run(GatherRowsPerHeadArgs{x.view, indices.view, gathered.view}, *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        const int32_t row = indices.view.as<int32_t>()[h * count + i];
        for (int64_t c = 0; c < d; ++c)
          ASSERT_EQ(reference::At(gathered.view, i, h, c), reference::At(x.view, row, h, c));
      }
    }
  }
}

// Rows of K and V, and a cache with more slots than rows.
struct CachedRows {
  static constexpr int64_t kRows = 200, kHeads = 2, kDim = 80, kBlocks = 20, kBlockSize = 16;
  HostTensor k, v, k_cache, v_cache;
  std::vector<int64_t> slot_of_row;

  CachedRows(DType dtype, std::mt19937& rng)
      : k(HostTensor::Random(dtype, {kRows, kHeads, kDim}, rng)),
        v(HostTensor::Random(dtype, {kRows, kHeads, kDim}, rng)),
        k_cache(HostTensor::Zeros(dtype, {kBlocks, kHeads, kBlockSize, kDim})),
        v_cache(HostTensor::Zeros(dtype, {kBlocks, kHeads, kBlockSize, kDim})),
        slot_of_row(kBlocks * kBlockSize) {
    std::iota(slot_of_row.begin(), slot_of_row.end(), 0);
    std::shuffle(slot_of_row.begin(), slot_of_row.end(), rng);
    slot_of_row.resize(kRows);
  }
  static bool IsSkipped(int64_t row) { return row % 5 == 0; }

  // Stores all rows that are not skipped.
  void Store(Backend& backend, Stream& stream) const {
    HostTensor slots = HostTensor::Zeros(DType::kI64, {kRows});
    for (int64_t t = 0; t < kRows; ++t)
      slots.view.as<int64_t>()[t] = IsSkipped(t) ? -1 : slot_of_row[t];
    backend.Rope({.x = k.view, .store = {slots.view, k_cache.view, v_cache.view}, .v = v.view},
                 stream);
    ASSERT_TRUE(stream.Synchronize().ok()) << stream.Synchronize();
  }
  static double AtSlot(const HostTensor& cache, int64_t slot, int64_t head, int64_t c) {
    return reference::At(cache.view, slot / kBlockSize, head, slot % kBlockSize, c);
  }
};

TEST_P(Ops, StoreToCacheSkipsRows) {
  for (DType dtype : TypesOf(*backend_)) {
    const CachedRows rows(dtype, rng_);
    ASSERT_NO_FATAL_FAILURE(rows.Store(*backend_, *stream_));
    double want = 0;
    for (int64_t t = 0; t < rows.kRows; ++t) {
      if (rows.IsSkipped(t)) continue;
      for (int64_t h = 0; h < rows.kHeads; ++h) {
        for (int64_t c = 0; c < rows.kDim; ++c) {
          want += reference::At(rows.k.view, t, h, c);
          ASSERT_EQ(rows.AtSlot(rows.k_cache, rows.slot_of_row[t], h, c),
                    reference::At(rows.k.view, t, h, c));
          ASSERT_EQ(rows.AtSlot(rows.v_cache, rows.slot_of_row[t], h, c),
                    reference::At(rows.v.view, t, h, c));
        }
      }
    }
    double sum = 0;
    for (double x : ToDoubles(rows.k_cache.view)) sum += x;
    EXPECT_NEAR(sum, want, 1e-6);  // skipped rows left no trace
  }
}

// Reads into rows that are not contiguous.
TEST_P(Ops, ReadFromCache) {
  for (DType dtype : TypesOf(*backend_)) {
    const CachedRows rows(dtype, rng_);
    ASSERT_NO_FATAL_FAILURE(rows.Store(*backend_, *stream_));
    const int64_t count = 40, width = rows.kHeads * rows.kDim;
    const auto row_of = [](int64_t i) { return i * 5 + 1; };
    HostTensor k = HostTensor::Zeros(dtype, {count, 3 * width}),
               v = HostTensor::Zeros(dtype, {count, 3 * width});
    HostTensor slots = HostTensor::Zeros(DType::kI64, {count});
    for (int64_t i = 0; i < count; ++i) slots.view.as<int64_t>()[i] = rows.slot_of_row[row_of(i)];
    const TensorView k_middle = k.view.Columns(width, 2 * width).SplitHeads(rows.kDim),
                     v_middle = v.view.Columns(width, 2 * width).SplitHeads(rows.kDim);
    backend_->ReadFromCache(slots.view, rows.k_cache.view, rows.v_cache.view, k_middle, v_middle,
                            *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok());
    for (int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(reference::At(k.view, i, 0), 0);  // the columns beside stay as they are
      for (int64_t h = 0; h < rows.kHeads; ++h) {
        for (int64_t c = 0; c < rows.kDim; ++c) {
          ASSERT_EQ(reference::At(k_middle, i, h, c), reference::At(rows.k.view, row_of(i), h, c));
          ASSERT_EQ(reference::At(v_middle, i, h, c), reference::At(rows.v.view, row_of(i), h, c));
        }
      }
    }
  }
}

TEST_P(Ops, TimeBetweenMarksIsAddedAtTheLatestWhenSynchronized) {
  double first = 0, both = 0;
  for (int turn = 1; turn <= 3; ++turn) {
    const int64_t begin = stream_->Mark();
    absl::SleepFor(absl::Milliseconds(2));  // nothing is in flight: the stream waits as long
    const int64_t middle = stream_->Mark();
    stream_->AddSeconds(begin, middle, &first);
    absl::SleepFor(absl::Milliseconds(1));
    stream_->AddSeconds(begin, stream_->Mark(), &both);
    ASSERT_TRUE(stream_->Synchronize().ok());
    EXPECT_GT(first, turn * 1.9e-3);
    EXPECT_GT(both, first);
  }
}

TEST_P(Ops, EmbeddingChecksIds) {
  HostTensor ids = HostTensor::Integers({3, 9});
  for (DType dtype : TypesOf(*backend_)) {
    for (int64_t width : {8, 7}) {
      HostTensor table = HostTensor::Random(dtype, {10, width}, rng_),
                 out = HostTensor::Zeros(dtype, {2, width});
      backend_->Embedding(table.view, ids.view, out.view, *stream_);
      ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
      for (int64_t c = 0; c < width; ++c) {
        EXPECT_EQ(reference::At(out.view, 0, c), reference::At(table.view, 3, c));
        EXPECT_EQ(reference::At(out.view, 1, c), reference::At(table.view, 9, c));
      }
    }
  }
  HostTensor table = HostTensor::Random(DType::kF32, {10, 8}, rng_),
             out = HostTensor::Zeros(DType::kF32, {2, 8});
  HostTensor bad = HostTensor::Integers({3, 10});
  backend_->Embedding(table.view, bad.view, out.view, *stream_);
  EXPECT_FALSE(stream_->Synchronize().ok());
}

INSTANTIATE_TEST_SUITE_P(Backend, Ops, testing::ValuesIn(TestBackendNames()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace apb::kernels
