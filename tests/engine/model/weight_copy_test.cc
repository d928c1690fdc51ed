// Goal: CopyWeights copies every number of every tensor, whatever its type, strides and size, and
// its errors name the tensor. Method: tensors from one number to several staging buffers are copied
// to the CPU and to a guarded device, whose asynchronous copies are as late as they may be. The
// result is compared with plain conversions of the same numbers.
#include "engine/model/weight_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "engine/model/float_convert.h"
#include "nlohmann/json.hpp"
#include "tests/engine/device/guarded_backend.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using testing::HasSubstr;

// `count` numbers that all types can represent. They do not repeat for a long way.
std::vector<std::byte> Numbers(DType dtype, int64_t count, int seed) {
  std::vector<float> numbers(count);
  for (int64_t i = 0; i < count; ++i)
    numbers[i] = static_cast<float>((i * 7919 + seed * 104729) % 4093 - 2046) / 8;
  std::vector<std::byte> bytes(count * SizeOf(dtype));
  ConvertFloats(DType::kF32, numbers.data(), dtype, bytes.data(), count);
  return bytes;
}

class WeightCopyTest : public testing::TestWithParam<bool> {
 protected:
  struct Case {
    int64_t rows, columns;  // rows 0: a vector
    DType source, target;
    int64_t source_stride = 0, target_stride = 0;  // 0: dense
  };

  TensorView View(void* data, DType dtype, const Case& c, int64_t stride) const {
    if (c.rows == 0) return TensorView::Contiguous(data, dtype, {c.columns});
    TensorView view = TensorView::Contiguous(data, dtype, {c.rows, c.columns});
    if (stride != 0) view.stride[0] = stride;
    return view;
  }

  void Add(const Case& c) {
    const int64_t rows = std::max<int64_t>(1, c.rows);
    const int64_t source_stride = c.source_stride != 0 ? c.source_stride : c.columns,
                  target_stride = c.target_stride != 0 ? c.target_stride : c.columns;
    sources_.push_back(Numbers(c.source, rows * source_stride, static_cast<int>(cases_.size())));
    targets_.push_back(*backend_->Allocate(rows * target_stride * SizeOf(c.target)));
    copies_.push_back({absl::StrCat("t", cases_.size()),
                       View(sources_.back().data(), c.source, c, c.source_stride),
                       View(targets_.back().data(), c.target, c, c.target_stride)});
    cases_.push_back(c);
  }

  void ExpectArrived(size_t i) {
    const Case& c = cases_[i];
    const int64_t rows = std::max<int64_t>(1, c.rows);
    std::vector<std::byte> got(rows * c.columns * SizeOf(c.target)), expected(got.size());
    auto stream = *backend_->NewStream();
    Case dense = c;
    dense.rows = rows;
    TensorView target = copies_[i].target;
    if (c.rows == 0) target = TensorView::Contiguous(target.data, target.dtype, {1, c.columns});
    backend_->Copy(target, View(got.data(), c.target, dense, 0), *stream);
    ASSERT_TRUE(stream->Synchronize().ok());
    const int64_t stride = c.source_stride != 0 ? c.source_stride : c.columns;
    for (int64_t row = 0; row < rows; ++row) {
      ConvertFloats(c.source, &sources_[i][row * stride * SizeOf(c.source)], c.target,
                    &expected[row * c.columns * SizeOf(c.target)], c.columns);
    }
    EXPECT_TRUE(got == expected) << "tensor " << i;
  }

  std::unique_ptr<kernels::Backend> backend_ =
      GetParam() ? kernels::CreateGuardedBackend(256 << 20)
                 : *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  std::vector<Case> cases_;
  std::vector<std::vector<std::byte>> sources_;
  std::vector<kernels::Buffer> targets_;
  std::vector<WeightCopy> copies_;
};

TEST_P(WeightCopyTest, AllTypesShapesAndStrides) {
  const DType types[] = {DType::kF32, DType::kBF16, DType::kF16};
  for (const DType source : types) {
    for (const DType target : types) {
      Add({0, 1, source, target});
      Add({0, 100'000, source, target});
      Add({300, 1000, source, target});
      Add({70, 33, source, target, 66});
      Add({70, 33, source, target, 0, 99});
    }
  }
  Add({0, 0, DType::kF32, DType::kBF16});
  // Tensors of several pieces, dense and strided; more pieces than buffers.
  Add({20'000, 1024, DType::kBF16, DType::kBF16});
  Add({5'000, 1000, DType::kF32, DType::kF32, 1024, 1001});
  Add({9'000, 1024, DType::kF16, DType::kF32});
  int64_t total = 0;
  for (const WeightCopy& copy : copies_)
    total += copy.source.numel() * static_cast<int64_t>(SizeOf(copy.source.dtype));
  std::vector<LoadProgress> told;
  const absl::Status status =
      CopyWeights(copies_, *backend_, [&](const LoadProgress& p) { told.push_back(p); });
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < cases_.size(); ++i) {
    if (cases_[i].columns > 0) ExpectArrived(i);
  }
  ASSERT_GT(told.size(), cases_.size());
  for (size_t i = 1; i < told.size(); ++i) EXPECT_GT(told[i].done_bytes, told[i - 1].done_bytes);
  EXPECT_EQ(told.back().done_bytes, total);
  EXPECT_EQ(told.back().total_bytes, total);
}

TEST_P(WeightCopyTest, NothingToCopy) { EXPECT_TRUE(CopyWeights({}, *backend_, nullptr).ok()); }

TEST_P(WeightCopyTest, ANumberThatDoesNotFitNamesItsTensor) {
  for (int i = 0; i < 20; ++i) Add({100, 100, DType::kF32, DType::kF16});
  const float large = 1e5f;
  std::memcpy(&sources_[13][4 * 5000], &large, 4);
  const absl::Status status = CopyWeights(copies_, *backend_, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("'t13' has a number that is too large for float16"));
}

TEST_P(WeightCopyTest, AFileThatBreaksIsAnError) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / absl::StrCat("weight_copy_test_", GetParam());
  constexpr int64_t kCount = 10'000;
  const std::string header =
      nlohmann::json{
          {"t", {{"dtype", "F32"}, {"shape", {kCount}}, {"data_offsets", {0, 4 * kCount}}}}}
          .dump();
  const uint64_t size = header.size();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(&size), sizeof size)
      .write(header.data(), static_cast<std::streamsize>(header.size()))
      .write(std::string(4 * kCount, '\1').data(), 4 * kCount);
  auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& entry = (*file)->tensors().at("t");
  targets_.push_back(*backend_->Allocate(4 * kCount));
  const WeightCopy copy{
      "t", TensorView::Contiguous(const_cast<std::byte*>(entry.data), DType::kF32, {kCount}),
      TensorView::Contiguous(targets_.back().data(), DType::kF32, {kCount}), file->get()};
  EXPECT_TRUE(CopyWeights({copy}, *backend_, nullptr).ok());
  std::filesystem::resize_file(path, 4 * kCount / 2);
  const absl::Status status = CopyWeights({copy}, *backend_, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path.string()));
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor 't' cannot be read"));
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Places, WeightCopyTest, testing::Bool(), [](const auto& info) {
  return info.param ? std::string("Device") : std::string("Host");
});

}  // namespace
}  // namespace apb::model
