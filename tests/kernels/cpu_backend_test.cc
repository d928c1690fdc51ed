// Goal: what only the CPU backend promises: results do not depend on threads, unknown code paths and
// operands that do not fit are errors. Method: the same call with other thread counts, wrong calls.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/reference/naive_ops.h"

namespace apb::kernels {
namespace {

using reference::HostTensor;

TEST(CpuBackend, AttentionDoesNotDependOnThreads) {
  std::mt19937 rng(8);
  HostTensor q = HostTensor::Random(DType::kBF16, {70, 6, 64}, rng),
             k = HostTensor::Random(DType::kBF16, {2000, 2, 64}, rng);
  std::vector<int32_t> positions(2000);
  std::iota(positions.begin(), positions.end(), 0);
  HostTensor at = HostTensor::Integers(positions);
  std::vector<KeySegment> segments = {
      {k.view, k.view, at.view, {Visibility::kCausal, Visibility::kCausal}}};
  std::vector<std::vector<double>> results;
  for (int threads : {1, 2, 3}) {
    auto backend = *CreateCpuBackend({.threads = threads, .force_isa = ""});
    auto stream = *backend->NewStream();
    HostTensor out = HostTensor::Zeros(DType::kF32, {70, 6, 64});
    backend->Attention({.q = q.view,
                        .q_positions = at.view.Rows(1930, 2000),
                        .keys = segments,
                        .scale = 0.125f,
                        .out = out.view},
                       *stream);
    results.push_back(reference::ToDoubles(out.view));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(CpuBackend, RefusesUnknownPathAndBadShapes) {
  EXPECT_EQ(CreateCpuBackend({.threads = 1, .force_isa = "mmx"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto backend = *CreateCpuBackend({.threads = 1, .force_isa = ""});
  auto stream = *backend->NewStream();
  std::mt19937 rng(1);
  HostTensor a = HostTensor::Random(DType::kF32, {3, 4}, rng),
             b = HostTensor::Random(DType::kF32, {5, 5}, rng);
  backend->Linear({.x = a.view, .weight = b.view, .bias = {}, .out = a.view}, *stream);
  EXPECT_EQ(stream->Synchronize().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace apb::kernels
