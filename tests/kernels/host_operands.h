// A backend whose operands are in host memory, over one whose operands are on a device: each
// operation uploads what it reads and downloads what it writes. Copies keep strides and alignment
// and have guard bytes around them; a guard that changed is a test failure.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace apb::kernels {

class HostOperands : public Backend {
 public:
  explicit HostOperands(std::unique_ptr<Backend> device) : device_(std::move(device)) {}

  std::string_view name() const override { return device_->name(); }
  Place place() const override { return Place::kHost; }
  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override {
    return device_->Allocate(size_bytes);
  }
  absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) override {
    return device_->AllocateHost(size_bytes);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override { return device_->NewStream(); }

  void Copy(const TensorView& source, const TensorView& target, Stream& stream) override;
  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) override;
  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) override;
  void Linear(const LinearArgs& args, Stream& stream) override;
  void Rope(const RopeArgs& args, Stream& stream) override;
  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) override;
  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) override;
  void AccumulateRmsNorm(const TensorView& x, const TensorView& residual, const TensorView& weight,
                         float epsilon, const TensorView& out, Stream& stream) override;
  void Attention(const AttentionArgs& args, Stream& stream) override;
  void PagedAttention(const PagedAttentionArgs& args, Stream& stream) override;
  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) override;
  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) override;
  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                   Stream& stream) override;
  void KeyScores(const KeyScoreArgs& args, Stream& stream) override;
  void TopKPerHead(const TopKPerHeadArgs& args, Stream& stream) override;
  void GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                         Stream& stream) override;
  void Sample(const SampleArgs& args, Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream&,
                                                absl::FunctionRef<absl::Status()>) override {
    return absl::UnimplementedError("operands come from the host and go back");
  }

 private:
  std::unique_ptr<Backend> device_;
};

}  // namespace apb::kernels
