// Goal: ranks as threads exchange the right bytes, and a peer that is lost or makes other calls is
// an error. Method: every collective on 1 to 5 threads, repeated; ranks that stay away, make other
// calls, or abort.
#include "engine/comm/local_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "tests/engine/comm/collectives.h"

namespace apb::comm {
namespace {

using testing::HasSubstr;

void OnRanks(int size, absl::Duration deadline, const std::function<void(Communicator&)>& body) {
  auto ranks = CreateLocalGroup(size, deadline);
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&body, &rank] { body(*rank); });
  for (std::thread& thread : threads) thread.join();
}

TEST(LocalCommunicator, Collectives) {
  for (int size = 1; size <= 5; ++size) {
    OnRanks(size, absl::Minutes(1), [](Communicator& c) {
      for (int i = 0; i < 3; ++i) CheckCollectives(c);
    });
  }
}

TEST(LocalCommunicator, APeerThatStaysAwayBreaksTheGroupForGood) {
  OnRanks(3, absl::Milliseconds(50), [](Communicator& c) {
    if (c.rank() == 1) return;
    const absl::Status first = c.Barrier();
    EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(first.message()), HasSubstr("barrier"));
    EXPECT_EQ(c.Barrier().code(), absl::StatusCode::kUnavailable);
  });
}

TEST(LocalCommunicator, DifferentCallsBreakTheGroup) {
  OnRanks(2, absl::Minutes(1), [](Communicator& c) {
    float data[2] = {};
    ReadyStream stream;
    const auto view = kernels::TensorView::Contiguous(data, kernels::DType::kF32, {1 + c.rank()});
    // Here each rank calls another operation, below the same one with other sizes.
    EXPECT_FALSE((c.rank() == 0 ? c.Barrier() : c.AllReduce(view, ReduceOp::kSum, stream)).ok());
  });
  OnRanks(2, absl::Minutes(1), [](Communicator& c) {
    float data[2] = {};
    ReadyStream stream;
    const auto view = kernels::TensorView::Contiguous(data, kernels::DType::kF32, {1 + c.rank()});
    EXPECT_EQ(c.AllReduce(view, ReduceOp::kSum, stream).code(), absl::StatusCode::kUnavailable);
  });
}

TEST(LocalCommunicator, AbortWakesABlockedCall) {
  OnRanks(2, absl::Hours(1), [](Communicator& c) {
    if (c.rank() == 0) {
      const absl::Status status = c.Barrier();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(status.message()), HasSubstr("the test says so"));
    } else {
      c.Abort("the test says so");
    }
  });
}

}  // namespace
}  // namespace apb::comm
