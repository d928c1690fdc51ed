// Goal: every backend draws the token that float64 arithmetic draws, for all parameters and for
// unusual logits. Method: a sorting oracle gives the tokens that are right within float's rounding
// (a cut or a draw may fall on the border of two tokens); cases without rounding have exact
// answers. Draws at evenly spaced places count the whole distribution.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "tests/kernels/backends.h"
#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;

constexpr double kTolerance = 1e-5;

// The drawing of one row's tokens in float64.
class Oracle {
 public:
  explicit Oracle(const std::vector<float>& logits) : logits_(logits) {
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!std::isinf(logits[i])) order_.push_back(static_cast<int32_t>(i));
    }
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  }
  double Weight(int32_t id, float temperature) const {
    return std::exp((static_cast<double>(logits_[id]) - logits_[order_[0]]) / temperature);
  }
  // The tokens that are kept, in ascending order. `off` is a relative error of top_p and min_p.
  std::vector<int32_t> Kept(const SampleRow& row, double off = 0) const {
    std::vector<int32_t> kept = order_;
    if (row.top_k > 0) kept.resize(std::min<size_t>(kept.size(), row.top_k));
    if (row.top_p < 1) {
      double total = 0, sum = 0;
      for (const int32_t id : kept) total += Weight(id, row.temperature);
      size_t count = 0;
      while (count == 0 || (count < kept.size() && sum < row.top_p * (1 + off) * total))
        sum += Weight(kept[count++], row.temperature);
      kept.resize(count);
    }
    if (row.min_p > 0) {
      std::erase_if(
          kept, [&](int32_t id) { return Weight(id, row.temperature) < row.min_p * (1 + off); });
    }
    if (kept.empty()) kept = {order_[0]};
    std::sort(kept.begin(), kept.end());
    return kept;
  }
  // The tokens that are right if uniform, top_p and min_p are off by up to kTolerance.
  std::set<int32_t> Right(const SampleRow& row) const {
    if (row.temperature <= 0) return {order_[0]};
    std::set<int32_t> right;
    for (const double off : {-kTolerance, 0.0, kTolerance}) {
      const std::vector<int32_t> kept = Kept(row, off);
      double total = 0, sum = 0;
      for (const int32_t id : kept) total += Weight(id, row.temperature);
      for (const int32_t id : kept) {
        const double begin = sum / total - kTolerance;
        sum += Weight(id, row.temperature);
        if (begin <= row.uniform && row.uniform < sum / total + kTolerance) right.insert(id);
      }
    }
    return right;
  }

 private:
  const std::vector<float>& logits_;
  std::vector<int32_t> order_;  // tokens with finite logits, best first
};

class Sample : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam(), 2);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
    stream_ = *backend_->NewStream();
  }

  // Draws a token for each row. The rows have equal length, and `gap` elements between them.
  std::vector<int32_t> Draw(const std::vector<std::vector<float>>& logits,
                            const std::vector<SampleRow>& rows,
                            const std::vector<LogitEdit>& edits = {}, int64_t gap = 0) {
    const int64_t count = static_cast<int64_t>(logits.size()),
                  vocab = static_cast<int64_t>(logits[0].size());
    HostTensor all = HostTensor::Zeros(DType::kF32, {count, vocab + gap});
    for (int64_t r = 0; r < count; ++r)
      std::copy(logits[r].begin(), logits[r].end(), all.view.as<float>() + r * (vocab + gap));
    std::vector<int32_t> tokens(count, -100);
    backend_->Sample({.logits = all.view.Columns(0, vocab),
                      .rows = rows.data(),
                      .edits = edits.data(),
                      .edit_count = static_cast<int64_t>(edits.size()),
                      .tokens = TensorView::Contiguous(tokens.data(), DType::kI32, {count})},
                     *stream_);
    EXPECT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    return tokens;
  }
  int32_t DrawOne(const std::vector<float>& logits, const SampleRow& row,
                  const std::vector<LogitEdit>& edits = {}) {
    SampleRow with_edits = row;
    with_edits.edits_end = static_cast<int32_t>(edits.size());
    return Draw({logits}, {with_edits}, edits)[0];
  }

  float Normal(float deviation) { return std::normal_distribution<float>(0, deviation)(rng_); }
  double Uniform() { return std::uniform_real_distribution<double>()(rng_); }
  // Perhaps emulated, and slow.
  bool is_cuda() const { return GetParam() == "cuda"; }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::mt19937 rng_{TestSeed(9)};
};

TEST_P(Sample, EqualsOracle) {
  for (const int64_t vocab : {1, 2, 3, 31, 33, 1023, 3001}) {
    std::vector<std::vector<float>> logits;
    std::vector<SampleRow> rows;
    for (int i = 0; i < (is_cuda() ? 30 : 60); ++i) {
      std::vector<float> row(vocab);
      const float deviation = i % 4 == 0 ? 0.1f : i % 4 == 1 ? 1.0f : i % 4 == 2 ? 4.0f : 20.0f;
      for (float& x : row) x = Normal(deviation);
      if (i % 3 == 0) {  // many equal logits, and both zeros
        for (float& x : row) x = std::round(x);
      }
      if (i % 5 == 0) {
        for (size_t j = 0; j + 1 < row.size(); j += 3) row[j] = -INFINITY;
      }
      const float temperatures[] = {0.8f, 1.0f, 0.05f, 3.0f, 1e-6f, 1e30f, 0.0f, 0.8f};
      const float shares[] = {1.0f, 0.95f, 0.5f, 0.1f, 1e-6f, 0.999f};
      const int32_t counts[] = {0, 1, 5, 50, 400, 100000};
      const float parts[] = {0, 0, 0.05f, 0.5f, 1.0f};
      rows.push_back({.uniform = Uniform(),
                      .temperature = temperatures[rng_() % 8],
                      .top_p = shares[rng_() % 6],
                      .min_p = parts[rng_() % 5],
                      .top_k = counts[rng_() % 6]});
      logits.push_back(std::move(row));
    }
    const std::vector<int32_t> drawn = Draw(logits, rows, {}, vocab % 2 == 0 ? 0 : 5);
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::set<int32_t> right = Oracle(logits[i]).Right(rows[i]);
      EXPECT_TRUE(right.contains(drawn[i]))
          << "V " << vocab << " row " << i << ": " << drawn[i] << ", right is " << *right.begin()
          << " .. " << *right.rbegin() << "; temperature " << rows[i].temperature << " top_k "
          << rows[i].top_k << " top_p " << rows[i].top_p << " min_p " << rows[i].min_p;
    }
  }
}

// Equal weights are added without rounding, so that the kept tokens and the draw are exact.
TEST_P(Sample, OfEqualLogitsTheLowestIds) {
  const int vocab = 700;
  for (const float level : {0.0f, -7.5f, 1e4f}) {
    const std::vector<float> logits(vocab, level);
    const auto last = [&](SampleRow row) {
      row.uniform = 0.9999;
      return DrawOne(logits, row);
    };
    EXPECT_EQ(last({}), vocab - 1);
    EXPECT_EQ(last({.top_k = 1}), 0);
    EXPECT_EQ(last({.top_k = 37}), 36);
    EXPECT_EQ(last({.top_p = 0.5f}), 349);
    EXPECT_EQ(last({.top_p = 0.5f, .top_k = 41}),
              20);  // 21 of 41 tokens are the fewest with half of the weight
    EXPECT_EQ(last({.top_p = 0.0f}), 0);
    EXPECT_EQ(last({.min_p = 1.0f}), vocab - 1);
    EXPECT_EQ(last({.temperature = 0}), 0);
    EXPECT_EQ(DrawOne(logits, {.uniform = 0.25}), 175);
    EXPECT_EQ(DrawOne(logits, {.uniform = 0}), 0);
  }
  // The best token, and ties at the border.
  std::vector<float> logits(vocab, 1.0f);
  logits[500] = 2.0f;
  EXPECT_EQ(DrawOne(logits, {.uniform = 0.999999, .top_k = 3}), 500);
  EXPECT_EQ(DrawOne(logits, {.uniform = 0.3, .top_k = 3}), 1);  // weights e^-1, e^-1, 1
  EXPECT_EQ(DrawOne({-0.0f, 0.0f, -1.0f}, {.temperature = 0}), 0);
  EXPECT_EQ(DrawOne({-1.0f, -0.0f, 0.0f}, {.uniform = 0.9, .top_k = 1}), 1);
}

// Draws at (i + 1/2) / N take a token of probability p N p times, up to one draw at each border.
TEST_P(Sample, DrawsFollowTheDistribution) {
  const int draws = is_cuda() ? 200 : 20000;
  std::vector<float> logits(40);
  for (float& x : logits) x = Normal(1.5f);
  logits[7] = -INFINITY;
  for (SampleRow row :
       {SampleRow{.temperature = 0.7f}, SampleRow{.temperature = 1.3f, .top_p = 0.9f, .top_k = 20},
        SampleRow{.min_p = 0.1f}}) {
    std::vector<SampleRow> rows(draws, row);
    for (int i = 0; i < draws; ++i) rows[i].uniform = (i + 0.5) / draws;
    std::map<int32_t, int> seen;
    for (const int32_t token : Draw(std::vector(draws, logits), rows)) ++seen[token];
    const Oracle oracle(logits);
    double total = 0;
    for (const int32_t id : oracle.Kept(row)) total += oracle.Weight(id, row.temperature);
    for (const int32_t id : oracle.Kept(row)) {
      const double expected = draws * oracle.Weight(id, row.temperature) / total;
      EXPECT_NEAR(seen[id], expected, 1.01 + draws * kTolerance) << id;
      seen.erase(id);
    }
    EXPECT_TRUE(seen.empty()) << seen.begin()->first << " was cut";
  }
}

TEST_P(Sample, LargeVocabularies) {
  const int64_t vocab = is_cuda() ? 40000 : 200001;
  std::vector<float> peaked(vocab), flat(vocab);
  for (float& x : peaked) x = Normal(2.5f);
  for (int i = 0; i < 30; ++i) peaked[rng_() % vocab] += 12;
  for (float& x : flat) x = Normal(1e-3f);
  for (const std::vector<float>& logits : {peaked, flat}) {
    std::vector<SampleRow> rows;
    for (const float share : {1.0f, 0.95f, 0.3f}) {
      for (const int32_t count : {0, 60, 5000})
        rows.push_back({.uniform = Uniform(), .temperature = 0.8f, .top_p = share, .top_k = count});
    }
    rows.push_back({.temperature = 0});
    const std::vector<int32_t> drawn = Draw(std::vector(rows.size(), logits), rows, {}, 3);
    const Oracle oracle(logits);
    for (size_t i = 0; i < rows.size(); ++i)
      EXPECT_TRUE(oracle.Right(rows[i]).contains(drawn[i])) << "row " << i;
  }
}

// Light tokens count by their number: each has just less than 2^-8 of the best weight.
TEST_P(Sample, ManyLightTokens) {
  std::vector<float> logits(1001, -8.00001f * std::log(2.0f));
  logits[0] = 0;
  for (const float share : {0.1f, 0.3f, 0.5f, 0.9f}) {
    for (const double uniform : {0.01, 0.5, 0.9999}) {
      const SampleRow row{.uniform = uniform, .top_p = share};
      EXPECT_TRUE(Oracle(logits).Right(row).contains(DrawOne(logits, row))) << share << uniform;
    }
  }
}

// A cut also separates logits whose difference is too small to change the weight.
TEST_P(Sample, CutsByLogitNotByWeight) {
  std::vector<float> logits(100, -60.0f);
  logits[0] = 0;
  for (int i = 0; i < 10; ++i) logits[90 - i] = -50.0f + static_cast<float>(i) * 4e-6f;
  for (int32_t count = 2; count <= 11; ++count) {
    const SampleRow row{.uniform = 0.9999, .temperature = 100, .top_k = count};
    EXPECT_EQ(DrawOne(logits, row), 79 + count) << count;
  }
}

TEST_P(Sample, Edits) {
  // Rows take their own edits: the penalty divides positive logits and multiplies others; then the
  // edit subtracts.
  const std::vector<LogitEdit> edits = {
      {1, 2.0f, 0},        {0, 1, 0.75f}, {2, 1, INFINITY},  // row 0
      {2, 2.0f, 0},                                          // row 2
      {0, 1e-30f, -3e38f}, {1, 1, -3e38f}};                  // row 3: beyond the largest float
  const std::vector<std::vector<float>> logits = {{2.0f, 3.0f, 9.0f, 1.0f},
                                                  {2.0f, 3.0f, 9.0f, 1.0f},
                                                  {-2.0f, -3.0f, -1.0f, -2.5f},
                                                  {1e10f, 2e38f, 0, 0}};
  std::vector<SampleRow> rows(4, SampleRow{.temperature = 0});
  const int32_t ends[] = {3, 3, 4, 6};
  for (int i = 0; i < 4; ++i) {
    rows[i].edits_begin = i == 0 ? 0 : ends[i - 1];
    rows[i].edits_end = ends[i];
  }
  EXPECT_EQ(Draw(logits, rows, edits), (std::vector<int32_t>{1, 2, 0, 0}));
  for (SampleRow& row : rows)
    row = {.uniform = 0.5, .edits_begin = row.edits_begin, .edits_end = row.edits_end};
  const std::vector<int32_t> drawn = Draw(logits, rows, edits);
  EXPECT_NE(drawn[0], 2);
  EXPECT_EQ(drawn[3], 1);  // both logits are equal
  EXPECT_EQ(DrawOne({1, 2}, {}, {{0, 1, INFINITY}, {1, 1, INFINITY}}), kNothingToDraw);
}

TEST_P(Sample, LogitsThatAllowNoDraw) {
  const float inf = INFINITY;
  for (const float temperature : {0.0f, 1.0f}) {
    const SampleRow row{.temperature = temperature, .top_p = 0.9f, .top_k = 3};
    std::vector<float> logits(50, 1.0f);
    for (const size_t place : {0, 31, 49}) {
      for (const float bad : {inf, NAN, -NAN}) {
        std::vector<float> with_bad = logits;
        with_bad[place] = bad;
        EXPECT_EQ(DrawOne(with_bad, row), kBadLogit);
        // An edit does not hide the bad logit.
        for (const LogitEdit edit : {LogitEdit{0, 2, 1}, LogitEdit{0, 1, inf}}) {
          LogitEdit there = edit;
          there.token = static_cast<int32_t>(place);
          EXPECT_EQ(DrawOne(with_bad, row, {there}), kBadLogit);
        }
      }
    }
    EXPECT_EQ(DrawOne(std::vector<float>(50, -inf), row), kNothingToDraw);
    EXPECT_EQ(DrawOne({-inf, -3.0f, -inf}, row), 1);
    EXPECT_EQ(DrawOne({-3e38f}, row), 0);
    EXPECT_EQ(DrawOne({-3e38f, 3e38f, -inf}, row), 1);
  }
  // A bad row does not change its neighbours.
  EXPECT_EQ(
      Draw({{1, 2}, {NAN, 0}, {3, 1}, {-inf, -inf}}, std::vector<SampleRow>(4, {.temperature = 0})),
      (std::vector<int32_t>{1, kBadLogit, 0, kNothingToDraw}));
}

TEST_P(Sample, SameOperandsSameTokensWhateverIsBeside) {
  std::vector<std::vector<float>> logits;
  std::vector<SampleRow> rows;
  for (int i = 0; i < 20; ++i) {
    std::vector<float> row(2000);
    for (float& x : row) x = Normal(1.0f);
    logits.push_back(row);
    rows.push_back({.uniform = Uniform(), .top_p = 0.9f, .top_k = i % 2 == 0 ? 0 : 300});
  }
  const std::vector<int32_t> together = Draw(logits, rows);
  EXPECT_EQ(Draw(logits, rows), together);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(DrawOne(logits[i], rows[i]), together[i]);
}

INSTANTIATE_TEST_SUITE_P(Backend, Sample, testing::ValuesIn(TestBackendNames()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace apb::kernels
