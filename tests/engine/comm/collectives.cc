#include "tests/engine/comm/collectives.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace apb::comm {
namespace {

using kernels::DType;
using kernels::TensorView;

// Element i of the data that rank r sends in round `round`.
float Value(int round, int r, int64_t i) { return static_cast<float>(round * 7919 + r * 101 + i); }

struct Floats {
  explicit Floats(int64_t n) : data(n, -1.0f) {}
  static Floats Of(int round, int rank, int64_t n) {
    Floats f(n);
    for (int64_t i = 0; i < n; ++i) f.data[i] = Value(round, rank, i);
    return f;
  }
  TensorView view() {
    return TensorView::Contiguous(data.data(), DType::kF32, {static_cast<int64_t>(data.size())});
  }
  std::vector<float> data;
};

void CheckGathers(Communicator& c, int round, int64_t n, ReadyStream& stream) {
  const int ranks = c.size(), me = c.rank();
  Floats send = Floats::Of(round, me, n), recv(n * ranks);
  ASSERT_TRUE(c.AllGather(send.view(), recv.view(), stream).ok());
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(recv.data[r * n + i], Value(round, r, i));

  Floats later(n * ranks);
  auto pending = c.StartAllGather(send.view(), later.view(), stream);
  ASSERT_TRUE(pending.ok()) << pending.status();
  ASSERT_TRUE((*pending)->Wait(stream).ok());
  ASSERT_EQ(later.data, recv.data);

  // Rank r sends r rows of n elements; rank 0 sends none.
  std::vector<int64_t> counts(ranks);
  std::iota(counts.begin(), counts.end(), 0);
  const int64_t rows = ranks * (ranks - 1) / 2;
  Floats mine = Floats::Of(round, me, me * n), all(rows * n);
  ASSERT_TRUE(c.AllGatherV(TensorView::Contiguous(mine.data.data(), DType::kF32, {me, n}),
                           TensorView::Contiguous(all.data.data(), DType::kF32, {rows, n}), counts,
                           stream)
                  .ok());
  int64_t at = 0;
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < r * n; ++i) ASSERT_EQ(all.data[at++], Value(round, r, i));
}

void CheckReductions(Communicator& c, int round, int64_t n, ReadyStream& stream) {
  const int ranks = c.size(), me = c.rank();
  const auto sum = [&](int64_t i) {
    float total = 0;
    for (int r = 0; r < ranks; ++r) total += Value(round, r, i);
    return total;
  };
  Floats data = Floats::Of(round, me, n), top = Floats::Of(round, me, n);
  ASSERT_TRUE(c.AllReduce(data.view(), ReduceOp::kSum, stream).ok());
  ASSERT_TRUE(c.AllReduce(top.view(), ReduceOp::kMax, stream).ok());
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(data.data[i], sum(i));
    ASSERT_EQ(top.data[i], Value(round, ranks - 1, i));
  }
}

void CheckAgreement(Communicator& c) {
  const int ranks = c.size(), me = c.rank();
  // More than a float can represent exactly.
  constexpr int64_t kBig = (int64_t{1} << 40) + 1;
  ASSERT_EQ(*MinOverRanks(c, kBig - me), kBig - (ranks - 1));
  ASSERT_EQ(*MaxOverRanks(c, -0.5 - me), -0.5);
  ASSERT_TRUE(*AllAgree(c, true));
  ASSERT_EQ(*AllAgree(c, me != ranks / 2), false);
}

void CheckExchanges(Communicator& c, int round, int64_t n, ReadyStream& stream) {
  const int ranks = c.size(), me = c.rank();
  Floats send = Floats::Of(round, me, n * ranks), recv(n * ranks);
  ASSERT_TRUE(c.AllToAll(send.view(), recv.view(), stream).ok());
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(recv.data[r * n + i], Value(round, r, me * n + i));

  const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
  Floats mine = Floats::Of(round, me, n), theirs(n);
  ASSERT_TRUE(c.SendRecv(mine.view(), next, theirs.view(), previous, stream).ok());
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(theirs.data[i], Value(round, previous, i));

  const int root = round % ranks;
  Floats shared = Floats::Of(round, me, n);
  ASSERT_TRUE(c.Broadcast(shared.view(), root, stream).ok());
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(shared.data[i], Value(round, root, i));
  ASSERT_TRUE(c.Barrier().ok());
}

int64_t Sent(const Communicator& c) {
  for (const auto& operation : c.stats().operations)
    if (operation.name == "all_gather") return operation.bytes_sent;
  return 0;
}

}  // namespace

void CheckCollectives(Communicator& communicator) {
  ReadyStream stream;
  const int64_t sent_before = Sent(communicator);
  int round = 0;
  for (const int64_t n : {0, 1, 3, 1000, 100'000}) {
    CheckGathers(communicator, round, n, stream);
    CheckReductions(communicator, round, n, stream);
    CheckExchanges(communicator, round, n, stream);
    ++round;
  }
  Floats two(2);
  EXPECT_FALSE(communicator.AllGather(two.view(), two.view().Rows(0, 1), stream).ok());
  EXPECT_EQ(Sent(communicator) - sent_before, 2 * 4 * 101'004 * (communicator.size() - 1));
  CheckAgreement(communicator);
  for (const auto& operation : communicator.stats().operations) {
    EXPECT_GE(operation.calls, round) << operation.name;
    EXPECT_GE(operation.seconds, 0) << operation.name;
  }
}

}  // namespace apb::comm
