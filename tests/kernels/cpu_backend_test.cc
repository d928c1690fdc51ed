// Goal: the promises of the CPU backend alone: results do not depend on the number of threads,
// unknown code paths and operands that do not fit are errors, APB_CPU_ISA chooses the code path.
// Method: the same call with several thread counts, wrong calls, the variable set.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <numeric>
#include <optional>
#include <string>

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

// Sets an environment variable, and restores its value at the end.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name); before != nullptr) before_ = before;
    setenv(name, value, 1);
  }
  ~ScopedVariable() {
    if (before_.has_value()) {
      setenv(name_, before_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }

 private:
  const char* const name_;
  std::optional<std::string> before_;
};

TEST(CpuBackend, TheEnvironmentChoosesTheCodePath) {
  const ScopedVariable portable("APB_CPU_ISA", "portable");
  EXPECT_EQ((*CreateCpuBackend({.threads = 1, .force_isa = ""}))->name(), "cpu/portable");
  // A name in the options overrides the variable.
  const absl::Status status = CreateCpuBackend({.threads = 1, .force_isa = "mmx"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuBackend, AMissingCodePathIsToldWithWhatThereIs) {
  for (const bool variable : {true, false}) {
    const ScopedVariable unknown("APB_CPU_ISA", variable ? "mmx" : "portable");
    const absl::Status status =
        CreateCpuBackend({.threads = 1, .force_isa = variable ? "" : "mmx"}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(status.message()),
        testing::AllOf(testing::StartsWith(variable ? "APB_CPU_ISA=mmx" : "CPU code path mmx"),
                       testing::HasSubstr("portable"), testing::HasSubstr("features: ")));
  }
}

TEST(CpuBackend, CopiesFloat16) {
  auto backend = *CreateCpuBackend({.threads = 1, .force_isa = ""});
  std::mt19937 rng(1);
  HostTensor x = HostTensor::Random(DType::kF16, {4, 4}, rng),
             y = HostTensor::Zeros(DType::kF16, {4, 4});
  auto stream = *backend->NewStream();
  backend->Copy(x.view, y.view, *stream);
  EXPECT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
  EXPECT_EQ(reference::ToDoubles(x.view), reference::ToDoubles(y.view));
}

TEST(CpuBackend, RefusesFloat16InOtherOperations) {
  auto backend = *CreateCpuBackend({.threads = 1, .force_isa = ""});
  std::mt19937 rng(1);
  const DType f16 = DType::kF16;
  HostTensor x = HostTensor::Random(f16, {4, 4}, rng), y = HostTensor::Zeros(f16, {4, 4}),
             weight = HostTensor::Random(f16, {4}, rng),
             cache = HostTensor::Zeros(f16, {1, 1, 4, 4}),
             sums = HostTensor::Zeros(DType::kF32, {4, 4}), at = HostTensor::Integers({0, 1, 2, 3}),
             slots = HostTensor::Zeros(DType::kI64, {4}),
             freq = HostTensor::Zeros(DType::kF32, {2}),
             parts = HostTensor::Zeros(DType::kF32, {1, 4, 1, 4}),
             lses = HostTensor::Zeros(DType::kF32, {1, 4, 1}),
             scores = HostTensor::Zeros(DType::kF32, {4, 1}),
             chosen = HostTensor::Zeros(DType::kI32, {1, 4});
  const TensorView heads = x.view.SplitHeads(4), out = y.view.SplitHeads(4);
  const KeySegment keys{.k = heads, .v = heads, .positions = at.view};
  const std::function<void(Stream&)> operations[] = {
      [&](Stream& s) { backend->Embedding(x.view, at.view, y.view, s); },
      [&](Stream& s) { backend->RmsNorm(x.view, weight.view, 1e-5f, y.view, s); },
      [&](Stream& s) {
        backend->Linear({.x = x.view, .weight = x.view, .bias = {}, .out = sums.view}, s);
      },
      [&](Stream& s) {
        backend->Rope({.x = heads, .positions = at.view, .inv_freq = freq.view}, s);
      },
      [&](Stream& s) { backend->SiluMul(sums.view, {}, y.view, s); },
      [&](Stream& s) { backend->Accumulate(sums.view, y.view, s); },
      [&](Stream& s) {
        backend->Attention(
            {.q = heads, .q_positions = at.view, .keys = {&keys, 1}, .scale = 1, .out = out}, s);
      },
      [&](Stream& s) {
        backend->PagedAttention({.q = heads,
                                 .q_positions = at.view,
                                 .k_cache = cache.view,
                                 .v_cache = cache.view,
                                 .sequences = {},
                                 .scale = 1,
                                 .out = out},
                                s);
      },
      [&](Stream& s) { backend->MergePartials(parts.view, lses.view, out, {}, s); },
      [&](Stream& s) {
        backend->AccumulateRmsNorm(sums.view, x.view, weight.view, 1e-5f, y.view, s);
      },
      [&](Stream& s) { backend->ReadFromCache(slots.view, cache.view, cache.view, out, out, s); },
      [&](Stream& s) {
        backend->KeyScores({.k = heads, .query = heads, .scale = 1, .scores = scores.view}, s);
      },
      [&](Stream& s) {
        backend->Run(GatherRowsPerHeadArgs{heads, chosen.view, out}, s);
      }};
  for (const auto& operation : operations) {
    auto stream = *backend->NewStream();
    operation(*stream);
    const absl::Status status = stream->Synchronize();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented)
        << "operation " << &operation - operations << ": " << status;
  }
}

}  // namespace
}  // namespace apb::kernels
