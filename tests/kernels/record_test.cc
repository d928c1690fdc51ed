// Goal: recorded work does again what it did, with what lies in its memory at that time: the steps
// of a decoding sequence, whose slots, positions and tables change from one to the next; and a
// recording that fails leaves the stream as it was. Method: rotation, append and paged attention of
// a batch that has padding rows, recorded once, launched for sequences that grow; the float64
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
  // Memory of the device like a view's, with its contents.
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

TEST_F(RecordTest, DecodeStepsOfGrowingSequences) {
  constexpr int64_t kRows = 3, kHeads = 4, kKvHeads = 2, kDim = 64, kBlock = 16, kMaxBlocks = 80;
  std::mt19937 rng(TestSeed(9));
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    // Rows 0 and 1 decode, row 2 is padding. Sequence 0 grows over borders of blocks and of splits.
    HostTensor q = HostTensor::Random(dtype, {kRows, kHeads, kDim}, rng, 1.5f),
               k = HostTensor::Random(dtype, {kRows, kKvHeads, kDim}, rng),
               v = HostTensor::Random(dtype, {kRows, kKvHeads, kDim}, rng),
               k_cache = HostTensor::Random(dtype, {kMaxBlocks, kKvHeads, kBlock, kDim}, rng),
               v_cache = HostTensor::Random(dtype, {kMaxBlocks, kKvHeads, kBlock, kDim}, rng),
               out = HostTensor::Zeros(DType::kF32, {kRows, kHeads, kDim}),
               lse = HostTensor::Zeros(DType::kF32, {kRows, kHeads});
    std::vector<int32_t> blocks(kMaxBlocks), positions(kRows), key_positions(kMaxBlocks * kBlock);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), rng);
    std::iota(key_positions.begin(), key_positions.end(), 0);
    std::vector<int64_t> slots(kRows);
    std::vector<float> frequencies(kDim / 2);
    for (size_t i = 0; i < frequencies.size(); ++i)
      frequencies[i] = std::pow(100.0f, -static_cast<float>(i) / 32);
    std::vector<PagedSequence> sequences(kRows);

    const TensorView d_fresh_q = Device(q.view), d_fresh_k = Device(k.view), d_q = Device(q.view),
                     d_k = Device(k.view), d_v = Device(v.view), d_keys = Device(k_cache.view),
                     d_values = Device(v_cache.view), d_out = Device(out.view),
                     d_lse = Device(lse.view), d_at = Device(ViewOf(positions, DType::kI32)),
                     d_slots = Device(ViewOf(slots, DType::kI64)),
                     d_frequencies = Device(ViewOf(frequencies, DType::kF32)),
                     d_blocks = Device(ViewOf(blocks, DType::kI32)),
                     d_key_positions = Device(ViewOf(key_positions, DType::kI32)),
                     d_sequences = Device(ViewOf(sequences, DType::kI64));
    const std::vector<PagedRows> rows = {{0, 1}, {1, 1}, {2, 1}};
    PagedAttentionArgs args{.q = d_q,
                            .q_positions = d_at,
                            .k_cache = d_keys,
                            .v_cache = d_values,
                            .rows = rows,
                            .sequences = d_sequences.as<PagedSequence>(),
                            .total_slots = kMaxBlocks * kBlock,
                            .scale = 0.125f,
                            .out = d_out,
                            .lse = d_lse};
    const auto step = [&] {
      backend_->Copy(d_fresh_q, d_q, *stream_);
      backend_->Copy(d_fresh_k, d_k, *stream_);
      backend_->Rope({.x = d_q, .positions = d_at, .inv_freq = d_frequencies}, *stream_);
      backend_->Rope({.x = d_k,
                      .positions = d_at,
                      .inv_freq = d_frequencies,
                      .store = {d_slots, d_keys, d_values},
                      .v = d_v},
                     *stream_);
      backend_->PagedAttention(args, *stream_);
      return absl::OkStatus();
    };
    // The bounds of the grid are those of the recording, the host's arrays are gone by then.
    std::unique_ptr<Graph> graph;
    const int64_t first = 1020, second = 40;  // slots of the sequences before the first step
    for (int64_t i = 0; i < 12; ++i) {
      const int64_t counts[kRows] = {first + i, i < 6 ? second + i : 0, 0};  // one leaves
      for (int64_t r = 0; r < kRows; ++r) {
        positions[r] = static_cast<int32_t>(counts[r]);
        const bool real = counts[r] > 0;
        const int32_t* table = d_blocks.as<int32_t>() + (r == 0 ? 0 : kMaxBlocks - 8);
        const int32_t* host_table = blocks.data() + (r == 0 ? 0 : kMaxBlocks - 8);
        slots[r] = real ? host_table[counts[r] / kBlock] * kBlock + counts[r] % kBlock : -1;
        sequences[r] = {};
        if (!real) continue;
        sequences[r] = {.block_table = table,
                        .slot_positions = d_key_positions.as<int32_t>() + 10,
                        .slot_count = counts[r] + 1,
                        .causal_begin = 10};
      }
      backend_->Copy(ViewOf(positions, DType::kI32), d_at, *stream_);
      backend_->Copy(ViewOf(slots, DType::kI64), d_slots, *stream_);
      backend_->Copy(ViewOf(sequences, DType::kI64), d_sequences, *stream_);
      if (i == 0) {
        step().IgnoreError();
      } else {
        if (graph == nullptr) {
          auto recorded = backend_->Record(*stream_, step);
          ASSERT_TRUE(recorded.ok()) << recorded.status();
          graph = *std::move(recorded);
        }
        graph->Launch(*stream_);
      }
      backend_->Copy(d_out, out.view, *stream_);
      backend_->Copy(d_lse, lse.view, *stream_);
      backend_->Copy(d_q, q.view, *stream_);
      backend_->Copy(d_keys, k_cache.view, *stream_);
      ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
      backend_->Copy(d_values, v_cache.view, *stream_);
      ASSERT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();

      std::vector<PagedSequence> on_host = sequences;
      for (int64_t r = 0; r < kRows; ++r) {
        on_host[r].block_table = blocks.data() + (r == 0 ? 0 : kMaxBlocks - 8);
        on_host[r].slot_positions = key_positions.data() + 10;
      }
      PagedAttentionArgs wanted = args;
      HostTensor at = HostTensor::Integers(positions);
      wanted.q = q.view;
      wanted.q_positions = at.view;
      wanted.k_cache = k_cache.view;
      wanted.v_cache = v_cache.view;
      wanted.sequences = on_host.data();
      const auto want = reference::PagedAttention(wanted);
      const std::vector<double> got = reference::ToDoubles(out.view),
                                got_lse = reference::ToDoubles(lse.view);
      const double tolerance = dtype == DType::kBF16 ? 4.5 / 128 : 2e-5;
      for (size_t e = 0; e < got.size(); ++e)
        ASSERT_NEAR(got[e], want.out[e], tolerance) << "step " << i << " element " << e;
      for (size_t e = 0; e < got_lse.size(); ++e) {
        if (std::isinf(want.lse[e])) {
          ASSERT_EQ(got_lse[e], want.lse[e]);
        } else {
          ASSERT_NEAR(got_lse[e], want.lse[e], 2e-4) << "step " << i << " element " << e;
        }
      }
      // What this step appended: the rotated key of row 0.
      const std::vector<double> key = reference::ToDoubles(
          TensorView::Contiguous(static_cast<std::byte*>(k_cache.view.data) +
                                     (slots[0] / kBlock * k_cache.view.stride[0] +
                                      slots[0] % kBlock * k_cache.view.stride[2]) *
                                         static_cast<int64_t>(SizeOf(dtype)),
                                 dtype, {kDim}));
      const double x = reference::ToDoubles(k.view)[0], y = reference::ToDoubles(k.view)[kDim / 2],
                   angle = positions[0];
      ASSERT_NEAR(key[0], x * std::cos(angle) - y * std::sin(angle), 0.02) << "step " << i;
    }
  }
}

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
  // Wants more scratch than the stream has had.
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
