// Goal: calibration gives all ranks the same usable numbers, on any machine. Method: the tiny model
// on 1 to 3 processes; no particular number is expected.
#include "engine/worker/calibration.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::worker {
namespace {

TEST(Calibration, IsTheSameOnAllRanks) {
  const context_parallel::TinyModel& tiny = context_parallel::TinyModel::Get();
  auto communicator = comm::TestRuntime().NewCommunicator(absl::Minutes(2));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  context_parallel::TinyEngine engine(**communicator);
  auto backend = *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  const auto speed = Calibrate(*tiny.weights, *backend, **communicator);
  ASSERT_TRUE(speed.ok()) << speed.status();
  std::vector<float> numbers;
  for (const double number : {speed->product_flops, speed->attention_flops,
                              speed->link_bytes_per_second, speed->link_latency_seconds}) {
    EXPECT_TRUE(std::isfinite(number) && number > 0) << number;
    numbers.push_back(static_cast<float>(number));
  }
  EXPECT_TRUE(engine.EqualOnAllRanks(numbers));
  if (engine.ranks() == 1) {  // without links, the defaults stay
    EXPECT_EQ(speed->link_bytes_per_second, context_parallel::MachineSpeed().link_bytes_per_second);
  }
}

TEST(Calibration, ShapeIsThatOfTheWeights) {
  const context_parallel::ModelShape shape = ShapeOf(*context_parallel::TinyModel::Get().weights);
  EXPECT_EQ(shape.layers, 3);
  EXPECT_EQ(shape.hidden_size, 48);
  EXPECT_EQ(shape.mlp_size, 64);
  EXPECT_EQ(shape.query_heads, 4);
  EXPECT_EQ(shape.kv_heads, 2);
  EXPECT_EQ(shape.head_dim, 16);
  EXPECT_EQ(shape.retaining_width, 24);
  EXPECT_EQ(shape.element_bytes, 4);
}

}  // namespace
}  // namespace apb::worker
