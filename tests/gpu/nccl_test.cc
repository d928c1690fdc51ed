// Goal: ranks over NCCL exchange the right bytes, and a peer that stays away is an error within the
// deadline. Method: one process for each rank, started by run.sh, which meet by a file:
//   nccl_test RANK SIZE FILE
// They may share a GPU if each has its own NCCL_HOSTID.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/time/clock.h"
#include "engine/parallel/nccl_communicator.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/engine/parallel/collectives.h"

namespace apb::parallel {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::TensorView;

int rank = 0, size = 1;
std::string meeting_file;

// The id by a file: rank 0 writes it under another name first, so that nobody reads half of it.
absl::StatusOr<std::string> ShareId(const std::string& path) {
  if (rank == 0) {
    absl::StatusOr<std::string> id = NewNcclId();
    if (!id.ok()) return id;
    std::ofstream(path + ".new", std::ios::binary) << *id;
    if (std::rename((path + ".new").c_str(), path.c_str()) != 0)
      return absl::InternalError("cannot write " + path);
    return id;
  }
  for (int i = 0; i < 3000; ++i) {
    std::ifstream in(path, std::ios::binary);
    std::string id{std::istreambuf_iterator<char>(in), {}};
    if (!id.empty()) return id;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return absl::UnavailableError("rank 0 wrote no id to " + path);
}

absl::StatusOr<std::unique_ptr<Communicator>> Meet(const char* name, absl::Duration deadline) {
  absl::StatusOr<std::string> id = ShareId(meeting_file + "." + name);
  if (!id.ok()) return id.status();
  return CreateNcclCommunicator({.id = *id, .rank = rank, .size = size, .deadline = deadline});
}

// A communicator for views of host memory, over one for views of the device's.
class HostViews : public Communicator {
 public:
  HostViews(Communicator& device, Backend& backend)
      : device_(device), backend_(backend), stream_(*backend.NewStream()) {}
  int rank() const override { return device_.rank(); }
  int size() const override { return device_.size(); }

  absl::Status AllGather(const TensorView& send, const TensorView& recv,
                         kernels::Stream&) override {
    return Run(send, recv, [&](const TensorView& s, const TensorView& r) {
      return device_.AllGather(s, r, *stream_);
    });
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartAllGather(const TensorView& send,
                                                          const TensorView& recv,
                                                          kernels::Stream&) override {
    auto pending = std::make_unique<HostPending>(*this, send, recv);
    auto inner = device_.StartAllGather(pending->send.view, pending->recv.view, *stream_);
    if (!inner.ok()) return inner.status();
    pending->inner = *std::move(inner);
    return pending;
  }
  absl::Status AllGatherV(const TensorView& send, const TensorView& recv,
                          std::span<const int64_t> counts, kernels::Stream&) override {
    return Run(send, recv, [&](const TensorView& s, const TensorView& r) {
      return device_.AllGatherV(s, r, counts, *stream_);
    });
  }
  absl::Status AllReduce(const TensorView& data, ReduceOp op, kernels::Stream&) override {
    return Run({}, data, [&](const TensorView&, const TensorView& d) {
      return device_.AllReduce(d, op, *stream_);
    });
  }
  absl::Status ReduceScatter(const TensorView& send, const TensorView& recv,
                             kernels::Stream&) override {
    return Run(send, recv, [&](const TensorView& s, const TensorView& r) {
      return device_.ReduceScatter(s, r, *stream_);
    });
  }
  absl::Status AllToAll(const TensorView& send, const TensorView& recv, kernels::Stream&) override {
    return Run(send, recv, [&](const TensorView& s, const TensorView& r) {
      return device_.AllToAll(s, r, *stream_);
    });
  }
  absl::Status SendRecv(const TensorView& send, int target, const TensorView& recv, int source,
                        kernels::Stream&) override {
    return Run(send, recv, [&](const TensorView& s, const TensorView& r) {
      return device_.SendRecv(s, target, r, source, *stream_);
    });
  }
  absl::StatusOr<std::unique_ptr<Pending>> StartSendRecv(const TensorView& send, int target,
                                                         const TensorView& recv, int source,
                                                         kernels::Stream&) override {
    auto pending = std::make_unique<HostPending>(*this, send, recv);
    auto inner =
        device_.StartSendRecv(pending->send.view, target, pending->recv.view, source, *stream_);
    if (!inner.ok()) return inner.status();
    pending->inner = *std::move(inner);
    return pending;
  }
  absl::Status Broadcast(const TensorView& data, int root, kernels::Stream&) override {
    return Run({}, data, [&](const TensorView&, const TensorView& d) {
      return device_.Broadcast(d, root, *stream_);
    });
  }
  absl::Status Barrier() override { return device_.Barrier(); }
  void Abort(std::string reason) override { device_.Abort(std::move(reason)); }
  CommunicatorStats stats() const override { return device_.stats(); }

 private:
  struct Mirror {
    Mirror(HostViews& owner, const TensorView& host) : host(host), view(host) {
      buffer = *owner.backend_.Allocate(host.numel() * SizeOf(host.dtype) + 1);
      view.data = buffer.data();
      owner.backend_.Copy(host, view, *owner.stream_);
    }
    TensorView host, view;
    Buffer buffer;
  };
  struct HostPending : Pending {
    HostPending(HostViews& owner, const TensorView& s, const TensorView& r)
        : owner(owner), send(owner, s), recv(owner, r) {}
    absl::Status Wait(kernels::Stream&) override {
      if (absl::Status status = inner->Wait(*owner.stream_); !status.ok()) return status;
      owner.backend_.Copy(recv.view, recv.host, *owner.stream_);
      return owner.stream_->Synchronize();
    }
    HostViews& owner;
    Mirror send, recv;
    std::unique_ptr<Pending> inner;
  };

  template <typename Call>
  absl::Status Run(const TensorView& send, const TensorView& recv, Call call) {
    Mirror from(*this, send), to(*this, recv);
    if (absl::Status status = call(from.view, to.view); !status.ok()) return status;
    backend_.Copy(to.view, to.host, *stream_);
    return stream_->Synchronize();
  }

  Communicator& device_;
  Backend& backend_;
  std::unique_ptr<kernels::Stream> stream_;
};

Backend& TestBackend() {
  static auto backend = *kernels::CreateCudaBackend(rank % *kernels::UsableCudaDevices());
  return *backend;
}

TEST(NcclCommunicator, Collectives) {
  TestBackend();
  auto communicator = Meet("collectives", absl::Minutes(1));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  HostViews views(**communicator, TestBackend());
  for (int i = 0; i < 3; ++i) CheckCollectives(views);
  EXPECT_FALSE(views.stats().operations.empty());
}

TEST(NcclCommunicator, APeerThatStaysAwayIsAnErrorAndStreamsFail) {
  if (size == 1) GTEST_SKIP() << "needs peers";
  auto communicator = Meet("stays_away", absl::Seconds(3));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  if (rank > 0) {
    absl::SleepFor(absl::Seconds(6));  // the others have given up
    (*communicator)->Abort("end of the test");
    return;
  }
  auto stream = *TestBackend().NewStream();
  const Buffer memory = *TestBackend().Allocate(1024);
  const TensorView data = TensorView::Contiguous(memory.data(), kernels::DType::kF32, {256});
  const absl::Status started = (*communicator)->AllReduce(data, ReduceOp::kSum, *stream);
  const absl::Status ended = stream->Synchronize();
  EXPECT_TRUE(!started.ok() || ended.code() == absl::StatusCode::kUnavailable) << ended;
  EXPECT_EQ((*communicator)->Barrier().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace apb::parallel

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 4) {
    std::fprintf(stderr, "usage: nccl_test RANK SIZE FILE\n");
    return 2;
  }
  apb::parallel::rank = std::atoi(argv[1]);
  apb::parallel::size = std::atoi(argv[2]);
  apb::parallel::meeting_file = argv[3];
  return RUN_ALL_TESTS();
}
