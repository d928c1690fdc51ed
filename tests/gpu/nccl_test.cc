// Goal: ranks over NCCL exchange the right bytes, and a peer that stays away is an error within the
// deadline. Method: run.sh starts one process for each rank; they find each other through a file:
//   nccl_test RANK SIZE FILE
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/time/clock.h"
#include "tests/engine/comm/collectives.h"
#include "tests/engine/comm/communicator_decorator.h"
#include "tests/gpu/nccl_meeting.h"

namespace apb::comm {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::TensorView;

// A communicator for views of CPU memory, over one for views of device memory.
class HostViews : public CommunicatorDecorator {
 public:
  HostViews(Communicator& device, Backend& backend)
      : CommunicatorDecorator(device), backend_(backend), stream_(*backend.NewStream()) {}

 private:
  // A view's copy in device memory.
  struct Mirror {
    Mirror(HostViews& owner, const TensorView& host) : host(host), view(host) {
      buffer = *owner.backend_.Allocate(BytesOf(host) + 1);
      view.data = buffer.data();
      if (host.numel() > 0) owner.backend_.Copy(host, view, *owner.stream_);
    }
    TensorView host, view;
    Buffer buffer;
  };
  struct HostPending : Pending {
    HostPending(HostViews& owner, const Collective& c)
        : owner(owner), send(owner, c.send), recv(owner, c.recv) {}
    absl::Status Wait(kernels::Stream&) override {
      if (absl::Status status = inner->Wait(*owner.stream_); !status.ok()) return status;
      owner.backend_.Copy(recv.view, recv.host, *owner.stream_);
      return owner.stream_->Synchronize();
    }
    HostViews& owner;
    Mirror send, recv;
    std::unique_ptr<Pending> inner;
  };
  absl::StatusOr<std::unique_ptr<Pending>> DoStart(const Collective& c, kernels::Stream&) override {
    auto pending = std::make_unique<HostPending>(*this, c);
    Collective on_device = c;
    on_device.send = pending->send.view;
    on_device.recv = pending->recv.view;
    auto started = inner().Start(on_device, *stream_);
    if (!started.ok()) return started.status();
    pending->inner = *std::move(started);
    return pending;
  }

  Backend& backend_;
  const std::unique_ptr<kernels::Stream> stream_;
};

TEST(NcclCommunicator, Collectives) {
  auto communicator = Meet("collectives", absl::Minutes(1));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  HostViews views(**communicator, NcclTestBackend());
  for (int i = 0; i < 3; ++i) CheckCollectives(views);
  EXPECT_FALSE(views.stats().operations.empty());
}

// An all_gather and an all_reduce of 256 floats. Record runs them once before it records them.
struct RecordedStep {
  explicit RecordedStep(Communicator& communicator) : communicator(communicator) {}
  absl::Status Do() {
    absl::Status status = communicator.AllGather(mine, all, *stream);
    if (status.ok()) status = communicator.AllReduce(sum, ReduceOp::kSum, *stream);
    return status;
  }
  absl::StatusOr<std::unique_ptr<kernels::Graph>> Record() {
    for (absl::Status status : {Do(), stream->Synchronize()}) {
      if (!status.ok()) return status;
    }
    return NcclTestBackend().Record(*stream, [this] { return Do(); });
  }
  TensorView View(int64_t floats) {
    buffers.push_back(*NcclTestBackend().Allocate(floats * sizeof(float)));
    return TensorView::Contiguous(buffers.back().data(), kernels::DType::kF32, {floats});
  }
  void Fill(const TensorView& view, float value) {
    std::vector<float> values(view.numel(), value);
    NcclTestBackend().Copy(
        TensorView::Contiguous(values.data(), kernels::DType::kF32, {view.numel()}), view, *stream);
    EXPECT_TRUE(stream->Synchronize().ok());
  }
  std::vector<float> Values(const TensorView& view) {
    std::vector<float> values(view.numel());
    NcclTestBackend().Copy(
        view, TensorView::Contiguous(values.data(), kernels::DType::kF32, {view.numel()}), *stream);
    const absl::Status status = stream->Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

  Communicator& communicator;
  std::vector<Buffer> buffers;
  std::unique_ptr<kernels::Stream> stream = *NcclTestBackend().NewStream();
  TensorView mine = View(256), all = View(256 * NcclRanks()), sum = View(256);
};

CommunicatorStats::Operation StatsOf(const Communicator& communicator, const std::string& name) {
  for (const auto& operation : communicator.stats().operations) {
    if (operation.name == name) return operation;
  }
  return {};
}

TEST(NcclCommunicator, RecordedCollectivesAreDoneAgain) {
  auto communicator = Meet("recorded", absl::Minutes(1));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  RecordedStep step(**communicator);
  auto graph = step.Record();
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (int i = 0; i < 10; ++i) {
    const float value = static_cast<float>(100 * i + NcclRank());
    step.Fill(step.mine, value);
    step.Fill(step.sum, value);
    (*graph)->Launch(*step.stream);
    float total = 0;
    for (int r = 0; r < NcclRanks(); ++r) total += static_cast<float>(100 * i + r);
    EXPECT_EQ(step.Values(step.sum), std::vector<float>(256, total));
    const std::vector<float> all = step.Values(step.all);
    for (int r = 0; r < NcclRanks(); ++r)
      EXPECT_EQ(all[r * 256 + 255], static_cast<float>(100 * i + r));
    // Between launches, the communicator also runs collectives that are not recorded.
    if (i % 3 == 0) {
      const absl::Status status =
          (*communicator)->AllReduce(step.sum, ReduceOp::kMax, *step.stream);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(step.Values(step.sum), std::vector<float>(256, total));
    }
  }
  // 1 step before the recording, 10 launches, and 4 more all_reduce.
  EXPECT_EQ(StatsOf(**communicator, "all_gather").calls, 11);
  EXPECT_EQ(StatsOf(**communicator, "all_gather").bytes_sent, 11 * 1024 * (NcclRanks() - 1));
  EXPECT_EQ(StatsOf(**communicator, "all_reduce").calls, 15);
  EXPECT_EQ(StatsOf(**communicator, "all_reduce").bytes_sent, 15 * 1024);
}

TEST(NcclCommunicator, APeerThatStaysAwayFromALaunchIsAnError) {
  if (NcclRanks() == 1) GTEST_SKIP() << "needs peers";
  auto communicator = Meet("stays_away_from_a_launch", absl::Seconds(3));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  RecordedStep step(**communicator);
  auto graph = step.Record();
  ASSERT_TRUE(graph.ok()) << graph.status();
  if (NcclRank() > 0) {
    absl::SleepFor(absl::Seconds(6));  // until rank 0 has given up
    (*communicator)->Abort("end of the test");
  } else {
    (*graph)->Launch(*step.stream);
    const absl::Status ended = step.stream->Synchronize();
    EXPECT_EQ(ended.code(), absl::StatusCode::kUnavailable) << ended;
    EXPECT_EQ((*communicator)->Barrier().code(), absl::StatusCode::kUnavailable);
    (*graph)->Launch(*step.stream);  // a broken communicator refuses it
    EXPECT_EQ(step.stream->Synchronize().code(), absl::StatusCode::kUnavailable);
  }
  graph->reset();  // a graph must be destroyed before its communicator
}

TEST(NcclCommunicator, APeerThatStaysAwayIsAnErrorAndStreamsFail) {
  if (NcclRanks() == 1) GTEST_SKIP() << "needs peers";
  auto communicator = Meet("stays_away", absl::Seconds(3));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  if (NcclRank() > 0) {
    absl::SleepFor(absl::Seconds(6));  // until rank 0 has given up
    (*communicator)->Abort("end of the test");
    return;
  }
  auto stream = *NcclTestBackend().NewStream();
  const Buffer memory = *NcclTestBackend().Allocate(1024);
  const TensorView data = TensorView::Contiguous(memory.data(), kernels::DType::kF32, {256});
  const absl::Status started = (*communicator)->AllReduce(data, ReduceOp::kSum, *stream);
  const absl::Status ended = stream->Synchronize();
  EXPECT_TRUE(!started.ok() || ended.code() == absl::StatusCode::kUnavailable) << ended;
  EXPECT_EQ((*communicator)->Barrier().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace apb::comm

int main(int argc, char** argv) { return apb::comm::RunNcclRank(argc, argv); }
