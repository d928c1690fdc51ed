// Goal: a call of a collective whose arguments do not fit together is refused before anything is
// sent, and BytesSent counts the payload. Method: calls of every kind on rank 1 of 3, right ones
// and wrong ones.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/comm/communicator.h"

namespace apb::comm {
namespace {

using Kind = Collective::Kind;
using kernels::DType;
using kernels::TensorView;

constexpr int kRank = 1, kSize = 3;

// A view of `rows` rows of 4 numbers. Nothing reads its memory.
TensorView Rows(int64_t rows, DType dtype = DType::kF32) {
  static float memory[64];
  return TensorView::Contiguous(memory, dtype, {rows, 4});
}

TEST(Collective, BytesOfEachKind) {
  const std::vector<int64_t> counts = {1, 2, 0};
  const std::vector<std::pair<Collective, int64_t>> calls = {
      {{.kind = Kind::kAllGather, .send = Rows(1), .recv = Rows(3)}, 2 * 16},
      {{.kind = Kind::kAllGatherV, .send = Rows(2), .recv = Rows(3), .counts = counts}, 2 * 32},
      {{.kind = Kind::kAllReduce, .recv = Rows(2)}, 32},
      {{.kind = Kind::kAllToAll, .send = Rows(3), .recv = Rows(3)}, 2 * 16},
      {{.kind = Kind::kSendRecv, .send = Rows(2), .recv = Rows(1), .target = 2, .source = 0}, 32},
      {{.kind = Kind::kBroadcast, .recv = Rows(2), .source = 1}, 2 * 32},
      {{.kind = Kind::kBroadcast, .recv = Rows(2), .source = 0}, 0}};
  for (const auto& [call, bytes] : calls) {
    EXPECT_TRUE(call.Check(kRank, kSize).ok()) << call.Check(kRank, kSize);
    EXPECT_EQ(call.BytesSent(kRank, kSize), bytes) << call.name();
  }
}

TEST(Collective, ArgumentsThatDoNotFitAreRefused) {
  const std::vector<int64_t> two = {1, 2}, other_sum = {1, 2, 1}, not_mine = {2, 1, 0};
  const std::vector<Collective> calls = {
      {.kind = Kind::kAllGather, .send = Rows(1), .recv = Rows(2)},
      {.kind = Kind::kAllGatherV, .send = Rows(2), .recv = Rows(3), .counts = two},
      {.kind = Kind::kAllGatherV, .send = Rows(2), .recv = Rows(3), .counts = other_sum},
      {.kind = Kind::kAllGatherV, .send = Rows(2), .recv = Rows(3), .counts = not_mine},
      {.kind = Kind::kAllReduce, .recv = Rows(2, DType::kBF16)},
      {.kind = Kind::kAllToAll, .send = Rows(3), .recv = Rows(2)},
      {.kind = Kind::kAllToAll, .send = Rows(1), .recv = Rows(1)},
      {.kind = Kind::kSendRecv, .send = Rows(1), .recv = Rows(1), .target = 3, .source = 0},
      {.kind = Kind::kSendRecv, .send = Rows(1), .recv = Rows(1), .target = 0, .source = -1},
      {.kind = Kind::kBroadcast, .recv = Rows(1), .source = 3}};
  for (const Collective& call : calls) {
    const absl::Status status = call.Check(kRank, kSize);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << call.name();
    EXPECT_TRUE(std::string(status.message()).starts_with(call.name())) << status;
  }
}

}  // namespace
}  // namespace apb::comm
