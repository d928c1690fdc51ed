// Goal: decode steps launched as recorded graphs draw the same tokens as steps launched operation
// by operation, and are really recorded. Method: on 1 to 4 ranks, two executors execute the same
// plans (decode_contract.h) on the guarded device, which notices CPU memory and freed memory in
// what it recorded. StepGraphs alone: work that counts its runs.
#include "engine/executor/step_graphs.h"

#include <gtest/gtest.h>

#include "engine/comm/local_communicator.h"
#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/engine/device/staged_communicator.h"
#include "tests/engine/executor/decode_contract.h"

namespace apb::executor {
namespace {

const absl::Duration kDeadline = absl::Minutes(1);

kernels::Backend& Device() {
  static kernels::Backend& device = *kernels::CreateGuardedBackend(256 << 20).release();
  return device;
}

comm::Mesh MakeMesh(int tensor) {
  comm::MpiRuntime& mpi = comm::TestRuntime();
  const auto staged = [&](int color) {
    return comm::StageThroughHost(*mpi.NewCommunicator(kDeadline, color), Device());
  };
  auto all = staged(0);
  if (tensor == 1) return comm::Mesh(std::move(all));
  auto context = staged(mpi.rank() % tensor);
  return comm::Mesh(std::move(all), std::move(context), staged(mpi.rank() / tensor));
}

TEST(StepGraphs, DecodeDrawsTheSameTokens) {
  const int ranks = comm::TestRuntime().size();
  for (const int tensor : {1, 2}) {
    if (ranks % tensor != 0) continue;
    for (const bool sliced : {false, true}) {
      if (sliced && ranks / tensor == 1) continue;
      SCOPED_TRACE(testing::Message() << "tensor=" << tensor << " sliced=" << sliced);
      CheckRecordedDecode({.device = Device(),
                           .make_mesh = [=](const std::string&) { return MakeMesh(tensor); },
                           .sliced = sliced,
                           .launches = [] { return kernels::GraphLaunches(Device()); }});
    }
  }
}

TEST(StepGraphs, Buckets) {
  const int64_t rows[] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 128};
  const int64_t padded[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 128};
  for (size_t i = 0; i < std::size(rows); ++i)
    EXPECT_EQ(StepGraphs::RowBucket(rows[i]), padded[i]) << rows[i];
  EXPECT_EQ(StepGraphs::SlotBucket(1), 512);
  EXPECT_EQ(StepGraphs::SlotBucket(1024), 1024);
  EXPECT_EQ(StepGraphs::SlotBucket(1025), 2048);
}

// One rank; the work adds 1 to a number in device memory.
class StepGraphsOfWork : public testing::Test {
 protected:
  StepGraphsOfWork() {
    memory_ = *Device().Allocate(64);
    one_memory_ = *Device().Allocate(64);
    Set(memory_, 0);
    Set(one_memory_, 1);
  }
  static kernels::TensorView View(const kernels::Buffer& buffer) {
    return kernels::TensorView::Contiguous(buffer.data(), kernels::DType::kF32, {1, 1});
  }
  void Set(const kernels::Buffer& buffer, float value) {
    Device().Copy(kernels::TensorView::Contiguous(&value, kernels::DType::kF32, {1, 1}),
                  View(buffer), *stream_);
  }
  float Value() {
    float value = -1;
    Device().Copy(View(memory_),
                  kernels::TensorView::Contiguous(&value, kernels::DType::kF32, {1, 1}), *stream_);
    EXPECT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    return value;
  }
  void Run(StepGraphs::Key key = {.rows = 1, .total_slots = 512}) {
    const absl::Status status = graphs_.Run(
        key, [this] { return moves_; }, *stream_,
        [this] {
          ++calls_;
          Device().Accumulate(View(one_memory_), View(memory_), *stream_);
          return result_;
        });
    EXPECT_TRUE(status.ok()) << status;
  }

  comm::Mesh mesh_{std::move(comm::CreateLocalGroup(1, kDeadline)[0])};
  std::unique_ptr<kernels::Stream> stream_ = *Device().NewStream();
  kernels::Buffer memory_, one_memory_;
  StepGraphs graphs_{Device(), mesh_};
  int64_t moves_ = 0, calls_ = 0;
  absl::Status result_;
};

TEST_F(StepGraphsOfWork, IsDoneThenRecordedThenLaunched) {
  for (int i = 1; i <= 5; ++i) {
    Run();
    EXPECT_EQ(Value(), static_cast<float>(i));
    EXPECT_EQ(calls_, std::min(i, 2));
  }
  moves_ = 1;  // as if the memory of the work had moved
  Run();
  EXPECT_EQ(calls_, 3);
  Run();
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(Value(), 7.0f);
}

TEST_F(StepGraphsOfWork, KeepsTheGraphsThatAreUsed) {
  for (int64_t rows = 1; rows <= 100; ++rows) {
    for (int i = 0; i < 2; ++i) Run({.rows = rows, .total_slots = 512});
    Run();  // this graph stays while others are dropped
  }
  EXPECT_EQ(calls_, 200);
  Run({.rows = 100, .total_slots = 512});
  EXPECT_EQ(calls_, 200);
  Run({.rows = 2, .total_slots = 512});  // was dropped: recorded again, then launched
  EXPECT_EQ(calls_, 201);
  EXPECT_EQ(Value(), 302.0f);
}

TEST_F(StepGraphsOfWork, GoesOnWithoutWhenARecordingFails) {
  Run();
  graphs_
      .Run(
          {.rows = 1, .total_slots = 512}, [this] { return moves_; }, *stream_,
          [this] {
            // Synchronizing fails during a recording, as on a device.
            const absl::Status status = stream_->Synchronize();
            if (status.ok()) Device().Accumulate(View(one_memory_), View(memory_), *stream_);
            return status;
          })
      .IgnoreError();
  EXPECT_EQ(Value(), 2.0f);
  EXPECT_FALSE(graphs_.enabled());
}

TEST(GuardedRecording, NoticesHostMemoryAndMemoryThatWasGivenBack) {
  auto stream = *Device().NewStream();
  kernels::Buffer a = *Device().Allocate(64), b = *Device().Allocate(64);
  float host = 0;
  const auto view = [](void* data) {
    return kernels::TensorView::Contiguous(data, kernels::DType::kF32, {1, 1});
  };
  EXPECT_FALSE(Device()
                   .Record(*stream,
                           [&] {
                             Device().Copy(view(&host), view(a.data()), *stream);
                             return absl::OkStatus();
                           })
                   .ok());
  auto graph = Device().Record(*stream, [&] {
    Device().Copy(view(a.data()), view(b.data()), *stream);
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  (*graph)->Launch(*stream);
  EXPECT_TRUE(stream->Synchronize().ok());
  a = kernels::Buffer();
  a = *Device().Allocate(64);  // most likely at the same address
  (*graph)->Launch(*stream);
  EXPECT_FALSE(stream->Synchronize().ok());
}

}  // namespace
}  // namespace apb::executor
