// Goal: a recording, launched again, works on the contents that its memory has by then: decode
// steps whose slots, positions and block tables change from one to the next. A recording that fails
// leaves the stream as it was. Method: rotation, append and paged attention of a batch with a
// padding row, recorded once and launched for sequences that grow, leave and join; the float64
// oracle. On the CUDA backend, or on the emulator.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/backends.h"
#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;

class RecordTest : public testing::Test {
 protected:
  void SetUp() override {
    auto backend = CreateCudaBackend(0);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
    stream_ = *backend_->NewStream();
  }
  // A copy of a view in device memory.
  TensorView Device(const TensorView& host) {
    buffers_.push_back(*backend_->Allocate(host.numel() * SizeOf(host.dtype)));
    TensorView view = host;
    view.data = buffers_.back().data();
    backend_->Copy(host, view, *stream_);
    return view;
  }
  std::unique_ptr<Backend> backend_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<Stream> stream_;
};

template <typename T>
TensorView ViewOf(std::vector<T>& values, DType dtype) {
  return TensorView::Contiguous(values.data(), dtype,
                                {static_cast<int64_t>(values.size() * sizeof(T) / SizeOf(dtype))});
}

// A decode step of a batch of three rows: rotation of q and k, append of k and v to the paged
// cache, paged attention. Each row belongs to a sequence of its own; the last row is always
// padding.
class DecodeStep : public RecordTest, public testing::WithParamInterface<DType> {
 protected:
  static constexpr int64_t kRows = 3, kHeads = 4, kKvHeads = 2, kDim = 64, kBlock = 16,
                           kMaxBlocks = 80;
  static constexpr int64_t kAlwaysSeen = 10;  // slots that are not compared by position

  void SetUp() override {
    RecordTest::SetUp();
    if (backend_ == nullptr) return;
    FillHost();
    CopyToDevice();
  }
  void FillHost() {
    const DType dtype = GetParam();
    q_ = HostTensor::Random(dtype, {kRows, kHeads, kDim}, rng_, 1.5f);
    k_ = HostTensor::Random(dtype, {kRows, kKvHeads, kDim}, rng_);
    v_ = HostTensor::Random(dtype, {kRows, kKvHeads, kDim}, rng_);
    k_cache_ = HostTensor::Random(dtype, {kMaxBlocks, kKvHeads, kBlock, kDim}, rng_);
    v_cache_ = HostTensor::Random(dtype, {kMaxBlocks, kKvHeads, kBlock, kDim}, rng_);
    out_ = HostTensor::Zeros(DType::kF32, {kRows, kHeads, kDim});
    lse_ = HostTensor::Zeros(DType::kF32, {kRows, kHeads});
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::shuffle(blocks_.begin(), blocks_.end(), rng_);
    std::iota(key_positions_.begin(), key_positions_.end(), 0);
    for (size_t i = 0; i < frequencies_.size(); ++i)
      frequencies_[i] = std::pow(100.0f, -static_cast<float>(i) / 32);
  }
  void CopyToDevice() {
    d_fresh_q_ = Device(q_.view);
    d_fresh_k_ = Device(k_.view);
    d_q_ = Device(q_.view);
    d_k_ = Device(k_.view);
    d_v_ = Device(v_.view);
    d_k_cache_ = Device(k_cache_.view);
    d_v_cache_ = Device(v_cache_.view);
    d_out_ = Device(out_.view);
    d_lse_ = Device(lse_.view);
    d_positions_ = Device(ViewOf(positions_, DType::kI32));
    d_slots_ = Device(ViewOf(slots_, DType::kI64));
    d_frequencies_ = Device(ViewOf(frequencies_, DType::kF32));
    d_blocks_ = Device(ViewOf(blocks_, DType::kI32));
    d_key_positions_ = Device(ViewOf(key_positions_, DType::kI32));
    d_sequences_ = Device(ViewOf(sequences_, DType::kI64));
  }

  // The index in blocks_ at which a row's block table begins.
  static int64_t TableBegin(int64_t row) { return row == 0 ? 0 : kMaxBlocks - 8; }

  // Sets the sequences of the next step. counts: slots in the cache before it; 0 for padding.
  void SetSequences(const std::vector<int64_t>& counts) {
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t count = counts[r];
      positions_[r] = static_cast<int32_t>(count);
      slots_[r] = -1;
      sequences_[r] = {};
      if (count == 0) continue;
      slots_[r] = blocks_[TableBegin(r) + count / kBlock] * kBlock + count % kBlock;
      sequences_[r] = {.block_table = d_blocks_.as<int32_t>() + TableBegin(r),
                       .slot_positions = d_key_positions_.as<int32_t>() + kAlwaysSeen,
                       .slot_count = count + 1,
                       .causal_begin = kAlwaysSeen};
    }
    backend_->Copy(ViewOf(positions_, DType::kI32), d_positions_, *stream_);
    backend_->Copy(ViewOf(slots_, DType::kI64), d_slots_, *stream_);
    backend_->Copy(ViewOf(sequences_, DType::kI64), d_sequences_, *stream_);
  }

  PagedAttentionArgs Args() const {
    return {.q = d_q_,
            .q_positions = d_positions_,
            .k_cache = d_k_cache_,
            .v_cache = d_v_cache_,
            .rows = rows_,
            .sequences = d_sequences_.as<PagedSequence>(),
            .total_slots = kMaxBlocks * kBlock,
            .scale = 0.125f,
            .out = d_out_,
            .lse = d_lse_};
  }
  // The work that is recorded.
  absl::Status Enqueue() {
    backend_->Copy(d_fresh_q_, d_q_, *stream_);
    backend_->Copy(d_fresh_k_, d_k_, *stream_);
    backend_->Rope({.x = d_q_, .positions = d_positions_, .inv_freq = d_frequencies_}, *stream_);
    backend_->Rope({.x = d_k_,
                    .positions = d_positions_,
                    .inv_freq = d_frequencies_,
                    .store = {d_slots_, d_k_cache_, d_v_cache_},
                    .v = d_v_},
                   *stream_);
    backend_->PagedAttention(Args(), *stream_);
    return absl::OkStatus();
  }
  // Runs a step without a recording, and checks it. A recording needs one such step before it,
  // which allocates the stream's scratch.
  void RunUnrecorded(const std::vector<int64_t>& counts) {
    SetSequences(counts);
    ASSERT_TRUE(Enqueue().ok());
    ASSERT_NO_FATAL_FAILURE(CheckResults());
  }
  // Launches the recording, which the first call makes, and checks the step.
  void Replay(const std::vector<int64_t>& counts) {
    SetSequences(counts);
    if (graph_ == nullptr) {
      auto recorded = backend_->Record(*stream_, [&] { return Enqueue(); });
      ASSERT_TRUE(recorded.ok()) << recorded.status();
      graph_ = *std::move(recorded);
    }
    graph_->Launch(*stream_);
    ASSERT_NO_FATAL_FAILURE(CheckResults());
  }

  void CheckResults() {
    backend_->Copy(d_out_, out_.view, *stream_);
    backend_->Copy(d_lse_, lse_.view, *stream_);
    backend_->Copy(d_q_, q_.view, *stream_);
    backend_->Copy(d_k_cache_, k_cache_.view, *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    backend_->Copy(d_v_cache_, v_cache_.view, *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    ASSERT_NO_FATAL_FAILURE(CheckAttention());
    for (int64_t r = 0; r < kRows; ++r) {
      if (slots_[r] < 0) continue;
      ASSERT_NO_FATAL_FAILURE(CheckAppendedKey(r));
    }
  }
  // Compares the outputs with the oracle's for the cache as the device left it.
  void CheckAttention() {
    std::vector<PagedSequence> on_host = sequences_;
    for (int64_t r = 0; r < kRows; ++r) {
      on_host[r].block_table = blocks_.data() + TableBegin(r);
      on_host[r].slot_positions = key_positions_.data() + kAlwaysSeen;
    }
    const HostTensor at = HostTensor::Integers(positions_);
    PagedAttentionArgs args = Args();
    args.q = q_.view;
    args.q_positions = at.view;
    args.k_cache = k_cache_.view;
    args.v_cache = v_cache_.view;
    args.sequences = on_host.data();
    const auto want = reference::PagedAttention(args);
    const std::vector<double> out = reference::ToDoubles(out_.view),
                              lse = reference::ToDoubles(lse_.view);
    const double tolerance = GetParam() == DType::kBF16 ? 4.5 / 128 : 2e-5;
    for (size_t e = 0; e < out.size(); ++e)
      ASSERT_NEAR(out[e], want.out[e], tolerance) << "element " << e;
    for (size_t e = 0; e < lse.size(); ++e) {
      if (std::isinf(want.lse[e])) {
        ASSERT_EQ(lse[e], want.lse[e]);
      } else {
        ASSERT_NEAR(lse[e], want.lse[e], 2e-4) << "element " << e;
      }
    }
  }
  // Checks the first number of the rotated key that the step appended for a row.
  void CheckAppendedKey(int64_t row) {
    const double key = reference::At(k_cache_.view, slots_[row] / kBlock, 0, slots_[row] % kBlock),
                 x = reference::At(k_.view, row, 0, 0),
                 y = reference::At(k_.view, row, 0, kDim / 2), angle = positions_[row];
    ASSERT_NEAR(key, x * std::cos(angle) - y * std::sin(angle), 0.02) << "row " << row;
  }

  std::mt19937 rng_{TestSeed(9)};
  const std::vector<PagedRows> rows_ = {{0, 1}, {1, 1}, {2, 1}};
  HostTensor q_, k_, v_, k_cache_, v_cache_, out_, lse_;
  std::vector<int32_t> blocks_ = std::vector<int32_t>(kMaxBlocks);
  std::vector<int32_t> positions_ = std::vector<int32_t>(kRows);
  std::vector<int32_t> key_positions_ = std::vector<int32_t>(kMaxBlocks * kBlock);
  std::vector<int64_t> slots_ = std::vector<int64_t>(kRows);
  std::vector<float> frequencies_ = std::vector<float>(kDim / 2);
  std::vector<PagedSequence> sequences_ = std::vector<PagedSequence>(kRows);
  TensorView d_fresh_q_, d_fresh_k_, d_q_, d_k_, d_v_, d_k_cache_, d_v_cache_, d_out_, d_lse_,
      d_positions_, d_slots_, d_frequencies_, d_blocks_, d_key_positions_, d_sequences_;
  std::unique_ptr<Graph> graph_;
};

// Sequence 0 grows beyond slot 1024, where a KV block and a split end.
TEST_P(DecodeStep, ReplaysForSequencesThatGrow) {
  ASSERT_NO_FATAL_FAILURE(RunUnrecorded({1020, 40, 0}));
  for (int64_t i = 1; i < 12; ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(Replay({1020 + i, 40 + i, 0}));
  }
}

TEST_P(DecodeStep, ReplaysAfterASequenceHasLeft) {
  ASSERT_NO_FATAL_FAILURE(RunUnrecorded({1020, 40, 0}));
  for (int64_t i = 1; i < 12; ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(Replay({1020 + i, i < 6 ? 40 + i : 0, 0}));
  }
}

// The recording was made with a padding row in the new sequence's place.
TEST_P(DecodeStep, ReplaysAfterASequenceHasJoined) {
  ASSERT_NO_FATAL_FAILURE(RunUnrecorded({500, 0, 0}));
  for (int64_t i = 1; i < 6; ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(Replay({500 + i, i < 3 ? 0 : 40 + i, 0}));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, DecodeStep, testing::Values(DType::kBF16, DType::kF32),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

TEST_F(RecordTest, NothingIsDoneBeforeTheLaunch) {
  HostTensor one = HostTensor::Zeros(DType::kF32, {1, 8}),
             two = HostTensor::Zeros(DType::kF32, {1, 8});
  std::fill_n(one.view.as<float>(), 8, 1.0f);
  const TensorView a = Device(one.view), b = Device(two.view);
  auto graph = backend_->Record(*stream_, [&] {
    backend_->Accumulate(a, b, *stream_);
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (const float want : {0.0f, 1.0f, 2.0f}) {
    backend_->Copy(b, two.view, *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok());
    EXPECT_EQ(two.view.as<float>()[7], want);
    (*graph)->Launch(*stream_);
  }
  EXPECT_TRUE(stream_->Synchronize().ok());
}

TEST_F(RecordTest, AFailureLeavesTheStreamAsItWas) {
  HostTensor one = HostTensor::Zeros(DType::kF32, {1, 8});
  std::fill_n(one.view.as<float>(), 8, 1.0f);
  const TensorView a = Device(one.view), b = Device(one.view);
  const auto record = [&](absl::FunctionRef<absl::Status()> work) {
    return backend_->Record(*stream_, work).status();
  };
  EXPECT_EQ(record([] { return absl::DataLossError("of the work"); }).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_FALSE(record([&] { return stream_->Synchronize(); }).ok());
  EXPECT_FALSE(record([&] {
                 backend_->Accumulate(a.Columns(0, 4), b, *stream_);  // shapes differ
                 return absl::OkStatus();
               }).ok());
  // Needs more scratch than the stream has.
  HostTensor keys = HostTensor::Zeros(DType::kF32, {2, 1, 4}),
             scores = HostTensor::Zeros(DType::kF32, {2, 1});
  const TensorView k = Device(keys.view), s = Device(scores.view);
  EXPECT_FALSE(record([&] {
                 backend_->KeyScores({.k = k, .query = k, .scale = 1, .scores = s}, *stream_);
                 return absl::OkStatus();
               }).ok());
  backend_->Accumulate(a, b, *stream_);
  backend_->Copy(b, one.view, *stream_);
  EXPECT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
  EXPECT_EQ(one.view.as<float>()[0], 2.0f);
}

}  // namespace
}  // namespace apb::kernels
