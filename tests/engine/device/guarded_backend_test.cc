// Goal: the guarded device notices what it is there for. Method: make the mistakes.
#include "tests/engine/device/guarded_backend.h"

#include <gtest/gtest.h>

#include <vector>

namespace apb::kernels {
namespace {

class GuardedBackendTest : public testing::Test {
 protected:
  TensorView Device(int64_t count) {
    buffers_.push_back(*backend_->Allocate(count * sizeof(float)));
    return TensorView::Contiguous(buffers_.back().data(), DType::kF32, {1, count});
  }
  std::unique_ptr<Backend> backend_ = CreateGuardedBackend(1 << 20);
  std::unique_ptr<Stream> stream_ = *backend_->NewStream();
  std::vector<Buffer> buffers_;
  std::vector<float> host_ = std::vector<float>(16, 1.0f);
  TensorView host_view_ = TensorView::Contiguous(host_.data(), DType::kF32, {1, 16});
};

TEST_F(GuardedBackendTest, ComputesInItsOwnMemory) {
  const TensorView a = Device(16), b = Device(16);
  backend_->Copy(host_view_, a, *stream_);
  backend_->Copy(a, b, *stream_);
  backend_->Accumulate(a, b, *stream_);
  backend_->Copy(b, host_view_, *stream_);
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_EQ(host_, std::vector<float>(16, 2.0f));
}

TEST_F(GuardedBackendTest, HostOperandsFailTheStream) {
  backend_->Accumulate(host_view_, Device(16), *stream_);
  EXPECT_FALSE(stream_->Synchronize().ok());
}

TEST_F(GuardedBackendTest, CopiesOfPageLockedMemoryAreLate) {
  const TensorView device = Device(16);
  Buffer memory = *backend_->AllocateHost(16 * sizeof(float));
  const TensorView pinned = TensorView::Contiguous(memory.data(), DType::kF32, {1, 16});
  pinned.as<float>()[3] = 1.0f;
  backend_->Copy(pinned, device, *stream_);
  pinned.as<float>()[3] = 2.0f;  // too early
  backend_->Copy(device, host_view_, *stream_);
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_EQ(host_[3], 2.0f);
  pinned.as<float>()[3] = 3.0f;
  ASSERT_TRUE(stream_->Synchronize().ok());
  backend_->Copy(device, host_view_, *stream_);
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_EQ(host_[3], 2.0f);
}

using GuardedBackendDeathTest = GuardedBackendTest;
TEST_F(GuardedBackendDeathTest, HostCodeCannotTouchIt) {
  const TensorView a = Device(16);
  EXPECT_DEATH(a.as<float>()[0] = 1.0f, "");
}

TEST_F(GuardedBackendTest, MemoryComesBack) {
  for (int i = 0; i < 100; ++i) {
    Buffer all = *backend_->Allocate(1 << 20);
    EXPECT_FALSE(backend_->Allocate(1).ok());
  }
}

}  // namespace
}  // namespace apb::kernels
