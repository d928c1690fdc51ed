// Goal: segmented and paged attention of every backend and code path equal the float64 oracle.
// Method: random shapes (0 and 1 rows, ragged, GQA 1..8, head_dim 64/80/96/128 and unusual ones),
// all visibilities, strided views, guard bytes. Tolerance: both have the same inputs. bf16 and f16
// paths round each weight once (2^-9 or 2^-12 relative) and the output once: |error| is at most
// 2^-7 or 2^-10 times max|v|, with a margin. Float paths add n terms: 2^-24 n max|v|, with a
// margin.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/kernels/backends.h"
#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;

double Tolerance(DType dtype) {
  return dtype == DType::kF32 ? 2e-5 : 9 * reference::Roundoff(dtype);
}
double LseTolerance(DType dtype) { return dtype == DType::kF32 ? 2e-5 : 2e-4; }

void ExpectClose(const std::vector<double>& want, const TensorView& got, double tolerance,
                 const std::string& what) {
  const std::vector<double> values = reference::ToDoubles(got);
  ASSERT_EQ(want.size(), values.size());
  double worst = 0, error = 0, power = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i])) {
      ASSERT_EQ(want[i], values[i]) << what << " element " << i;
      continue;
    }
    ASSERT_FALSE(std::isnan(values[i])) << what << " element " << i;
    worst = std::max(worst, std::abs(want[i] - values[i]));
    error += (want[i] - values[i]) * (want[i] - values[i]);
    power += want[i] * want[i];
  }
  EXPECT_LE(worst, tolerance) << what;
  EXPECT_LE(error / power, tolerance * tolerance / 16 + 1e-12)
      << what << " (normalised mean square)";
}

struct Shape {
  DType dtype;
  int64_t rows, split, kv_heads, group, head_dim;
  std::vector<int64_t> segments;  // keys of each
};

// Random operands of segmented attention, and the arguments of a call with them.
struct SegmentedCase {
  HostTensor q, q_positions, out, lse;
  std::vector<HostTensor> store;  // keys, values and positions of the segments
  std::vector<KeySegment> segments;
  AttentionArgs args;

  SegmentedCase(const Shape& s, std::mt19937& rng) {
    const int64_t heads = s.kv_heads * s.group;
    int64_t longest = 1;
    for (int64_t n : s.segments) longest = std::max(longest, n);
    q = HostTensor::Random(s.dtype, {s.rows, heads, s.head_dim}, rng, 1.5f);
    std::vector<int32_t> positions(s.rows);
    for (int32_t& p : positions) p = static_cast<int32_t>(rng() % (longest + 3));
    if (rng() % 2)
      std::iota(positions.begin(), positions.end(), static_cast<int32_t>(longest - s.rows));
    q_positions = HostTensor::Integers(positions);
    // A wider buffer makes rows strided. Fast paths need rows aligned to 16 bytes.
    const int64_t extra = rng() % 3 == 0 ? 5 : 8;
    for (int64_t n : s.segments) AddSegment(s, n, extra, rng);
    out = HostTensor::Random(rng() % 3 == 0 ? DType::kF32 : s.dtype,
                             {s.rows + 1, heads, s.head_dim}, rng);  // the last row is a guard
    lse = HostTensor::Zeros(DType::kF32, {s.rows, heads});
    args = {.q = q.view,
            .q_positions = q_positions.view,
            .group_split = s.split,
            .keys = segments,
            .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
            .out = out.view.Rows(0, s.rows),
            .lse = lse.view};
  }
  std::vector<double> Guard() const {
    return reference::ToDoubles(out.view.Rows(args.q.shape[0], args.q.shape[0] + 1));
  }

 private:
  void AddSegment(const Shape& s, int64_t keys, int64_t extra, std::mt19937& rng) {
    const int64_t width = s.kv_heads * s.head_dim;
    HostTensor kv = HostTensor::Random(s.dtype, {keys, 2 * width + extra}, rng);
    std::vector<int32_t> positions(keys);
    std::iota(positions.begin(), positions.end(), 0);
    if (rng() % 3 == 0) std::shuffle(positions.begin(), positions.end(), rng);
    HostTensor at = HostTensor::Integers(positions);
    KeySegment segment;
    segment.k = kv.view.Columns(0, width).SplitHeads(s.head_dim);
    segment.v = kv.view.Columns(width, 2 * width).SplitHeads(s.head_dim);
    segment.positions = at.view;
    for (Visibility& v : segment.visible_to_group) v = static_cast<Visibility>(rng() % 3);
    store.push_back(std::move(kv));
    store.push_back(std::move(at));
    segments.push_back(segment);
  }
};

void CheckAttention(Backend& backend, const Shape& s, std::mt19937& rng) {
  const SegmentedCase test(s, rng);
  const std::vector<double> guard = test.Guard();
  auto stream = *backend.NewStream();
  backend.Attention(test.args, *stream);
  ASSERT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
  const auto want = reference::Attention(test.args);
  const std::string what = std::string(backend.name()) + " rows=" + std::to_string(s.rows) +
                           " kv=" + std::to_string(s.kv_heads) + " g=" + std::to_string(s.group) +
                           " d=" + std::to_string(s.head_dim) + " " + NameOf(s.dtype);
  ExpectClose(want.out, test.args.out, Tolerance(s.dtype), what + " out");
  ExpectClose(want.lse, test.args.lse, LseTolerance(s.dtype), what + " lse");
  EXPECT_EQ(guard, test.Guard()) << what;
}

Shape RandomShape(DType dtype, int trial, std::mt19937& rng) {
  const int64_t dims[] = {64, 80, 96, 128, 32, 20};
  Shape s{.dtype = dtype,
          .rows = trial == 0  ? 0
                  : trial < 3 ? 1
                              : static_cast<int64_t>(rng() % 90),
          .split = 0,
          .kv_heads = 1 + static_cast<int64_t>(rng() % 3),
          .group = 1 + static_cast<int64_t>(rng() % 8),
          .head_dim = dims[trial % 6],
          .segments = {}};
  s.split = s.rows == 0 ? 0 : static_cast<int64_t>(rng() % (s.rows + 1));
  for (int64_t i = rng() % 4; i > 0; --i)
    s.segments.push_back(rng() % 3 == 0 ? rng() % 2 : rng() % 330);
  return s;
}

TEST(Attention, EqualsOracleOverRandomShapes) {
  for (auto& backend : AllTestBackends()) {
    std::mt19937 rng(TestSeed(5));
    const std::vector<DType> types = TypesOf(*backend);
    const int trials = 40 / static_cast<int>(types.size());
    for (DType dtype : types) {
      for (int trial = 0; trial < trials; ++trial) {
        CheckAttention(*backend, RandomShape(dtype, trial, rng), rng);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Attention, ManyUnitsOfRowsAndBlocksOfKeys) {
  for (auto& backend : AllTestBackends()) {
    std::mt19937 rng(TestSeed(6));
    for (DType dtype : TypesOf(*backend)) {
      CheckAttention(*backend, {dtype, 300, 40, 2, 3, 64, {40, 600, 257}}, rng);
    }
  }
}

// Random operands of paged attention, and the arguments of a call with them. `trial` chooses the
// shape.
struct PagedCase {
  std::vector<PagedRows> rows;
  std::vector<PagedSequence> sequences;
  std::vector<std::vector<int32_t>> tables, slot_positions;
  HostTensor q, q_positions, k, v, out, lse;
  PagedAttentionArgs args;

  PagedCase(DType dtype, int trial, std::mt19937& rng) {
    const int64_t dims[] = {32, 256, 64, 80, 96, 128};
    const int64_t d = dims[trial % 6], kv_heads = 1 + rng() % 3, group = 1 + rng() % 8,
                  block = trial % 3 ? 32 : 16;
    const int64_t heads = kv_heads * group;
    const int count = trial == 7 ? 40 : 1 + static_cast<int>(rng() % 3);
    for (int i = 0; i < count; ++i) AddSequence(trial, block, rng);
    for (int i = 0; i < count; ++i) {
      sequences[i].block_table = tables[i].data();
      sequences[i].slot_positions = slot_positions[i].data() + sequences[i].causal_begin;
    }
    k = HostTensor::Random(dtype, {blocks_ + 1, kv_heads, block, d}, rng);
    v = HostTensor::Random(dtype, {blocks_ + 1, kv_heads, block, d}, rng);
    q = HostTensor::Random(dtype, {tokens_, heads, d}, rng);
    std::vector<int32_t> positions(tokens_);
    for (int32_t& p : positions) p = static_cast<int32_t>(rng() % 1000);
    q_positions = HostTensor::Integers(positions);
    out = HostTensor::Zeros(trial % 4 < 2 ? DType::kF32 : dtype, {tokens_, heads, d});
    lse = HostTensor::Zeros(DType::kF32, {tokens_, heads});
    args = {.q = q.view,
            .q_positions = q_positions.view,
            .k_cache = k.view,
            .v_cache = v.view,
            .rows = rows,
            .sequences = sequences.data(),
            .total_slots = slots_,
            .scale = 0.2f,
            .out = out.view,
            .lse = lse.view};
  }

 private:
  // Trial 3 has long sequences, trials 4 and 5 have many tokens of each.
  void AddSequence(int trial, int64_t block, std::mt19937& rng) {
    PagedSequence sequence;
    rows.push_back({tokens_, trial == 4 || trial == 5 ? 60 : static_cast<int64_t>(1 + rng() % 4)});
    sequence.slot_count = trial == 3 ? 2700 : rng() % 4 == 0 ? 0 : rng() % 700;
    sequence.causal_begin = rng() % 2 ? rng() % (sequence.slot_count + 1) : 0;
    tokens_ += rows.back().count;
    slots_ += sequence.slot_count;
    std::vector<int32_t> table((sequence.slot_count + block - 1) / block), at(sequence.slot_count);
    for (int32_t& b : table) b = static_cast<int32_t>(blocks_++);
    std::shuffle(table.begin(), table.end(), rng);
    for (int32_t& p : at) p = static_cast<int32_t>(rng() % 1000);
    tables.push_back(std::move(table));
    slot_positions.push_back(std::move(at));
    sequences.push_back(sequence);
  }

  int64_t tokens_ = 0, blocks_ = 0, slots_ = 0;
};

TEST(PagedAttention, EqualsOracleOverRandomShapes) {
  for (auto& backend : AllTestBackends()) {
    std::mt19937 rng(TestSeed(7));
    const std::vector<DType> types = TypesOf(*backend);
    const int trials = 24 / static_cast<int>(types.size());
    for (int n = 0; n < 24; ++n) {
      const DType dtype = types[n / trials];
      const int trial = n % trials;
      PagedCase test(dtype, trial, rng);
      auto stream = *backend->NewStream();
      backend->PagedAttention(test.args, *stream);
      ASSERT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
      if (trial % 8 == 3) {  // a higher bound does not change a bit
        const std::vector<double> under_exact_bound = reference::ToDoubles(test.out.view);
        test.args.total_slots += 5000;
        backend->PagedAttention(test.args, *stream);
        ASSERT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
        EXPECT_EQ(reference::ToDoubles(test.out.view), under_exact_bound);
      }
      const auto want = reference::PagedAttention(test.args);
      ExpectClose(want.out, test.out.view, Tolerance(dtype),
                  std::string(backend->name()) + " trial " + std::to_string(trial));
      ExpectClose(want.lse, test.lse.view, LseTolerance(dtype), "lse");
      if (HasFatalFailure()) return;
    }
  }
}

constexpr int64_t kLargeRows = 20, kLargeHeads = 2, kLargeKeys = 144;

// Numbers near 40. All numbers of a row have the same random sign.
HostTensor SignedRows(DType dtype, int64_t rows, int64_t heads, int64_t d, std::mt19937& rng) {
  HostTensor t = HostTensor::Zeros(dtype, {rows, heads, d});
  std::normal_distribution<float> normal(40, 1);
  for (int64_t r = 0; r < rows; ++r) {
    const float sign = rng() % 2 ? 1.0f : -1.0f;
    for (int64_t i = 0; i < heads * d; ++i)
      reference::Put(t.view, r * heads * d + i, sign * normal(rng));
  }
  return t;
}

// The same attention over a paged cache, whose memory is that of a segment with one KV head.
void AttendPaged(Backend& backend, const AttentionArgs& args, Stream& stream) {
  constexpr int64_t kBlock = 16, kBlocks = kLargeKeys / kBlock;
  std::vector<int32_t> table(kBlocks);
  std::iota(table.begin(), table.end(), 0);
  PagedSequence sequences[2];  // of one row and of many
  for (PagedSequence& s : sequences) {
    s.block_table = table.data();
    s.slot_count = s.causal_begin = kLargeKeys;
  }
  const PagedRows rows[2] = {{.begin = 0, .count = 1}, {.begin = 1, .count = kLargeRows - 1}};
  const auto cache = [&](const TensorView& keys) {
    return TensorView::Contiguous(keys.data, keys.dtype, {kBlocks, 1, kBlock, keys.shape[2]});
  };
  backend.PagedAttention({.q = args.q,
                          .q_positions = args.q_positions,
                          .k_cache = cache(args.keys[0].k),
                          .v_cache = cache(args.keys[0].v),
                          .rows = rows,
                          .sequences = sequences,
                          .total_slots = 2 * kLargeKeys,
                          .scale = args.scale,
                          .out = args.out,
                          .lse = args.lse},
                         stream);
}

void CheckLargeNumbers(Backend& backend, DType dtype, int64_t d, float value, std::mt19937& rng) {
  const HostTensor q = SignedRows(dtype, kLargeRows, kLargeHeads, d, rng),
                   k = SignedRows(dtype, kLargeKeys, 1, d, rng);
  HostTensor v = HostTensor::Random(dtype, {kLargeKeys, 1, d}, rng);
  if (value != 0) {
    for (int64_t i = 0; i < kLargeKeys * d; ++i) reference::Put(v.view, i, value);
  }
  std::vector<int32_t> positions(kLargeKeys);
  std::iota(positions.begin(), positions.end(), 0);
  const HostTensor at = HostTensor::Integers(positions);
  KeySegment segment{.k = k.view, .v = v.view, .positions = at.view};
  segment.visible_to_group[0] = segment.visible_to_group[1] = Visibility::kAll;
  for (const bool paged : {false, true}) {
    HostTensor out = HostTensor::Zeros(dtype, {kLargeRows, kLargeHeads, d}),
               lse = HostTensor::Zeros(DType::kF32, {kLargeRows, kLargeHeads});
    const AttentionArgs args{.q = q.view,
                             .q_positions = at.view.Rows(0, kLargeRows),
                             .keys = {&segment, 1},
                             .scale = 200.0f / (40 * 40 * static_cast<float>(d)),
                             .out = out.view,
                             .lse = lse.view};
    auto stream = *backend.NewStream();
    if (paged) {
      AttendPaged(backend, args, *stream);
    } else {
      backend.Attention(args, *stream);
    }
    ASSERT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
    const auto want = reference::Attention(args);
    const std::string what = std::string(backend.name()) + " " + NameOf(dtype) +
                             " d=" + std::to_string(d) + (paged ? " paged" : "");
    // Float sums of 100000 have an error of about 0.01, and the logits a 500th of that.
    ExpectClose(want.out, out.view, (Tolerance(dtype) + 2e-3) * std::max(1.0f, value), what);
    ExpectClose(want.lse, lse.view, 2e-3, what + " lse");
  }
}

// Logits of +-200 from sums of +-100000, which no Float16 holds, and values near Float16's largest.
TEST(Attention, LargeNumbersDoNotOverflow) {
  std::mt19937 rng(TestSeed(9));
  for (auto& backend : AllTestBackends()) {
    for (DType dtype : TypesOf(*backend)) {
      for (int64_t d : {32, 64, 80, 128}) {
        CheckLargeNumbers(*backend, dtype, d, 0, rng);
        CheckLargeNumbers(*backend, dtype, d, 60000, rng);
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace apb::kernels
