#include "engine/context_parallel/apb/compressor.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::context_parallel {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr std::string_view kRetainingHeads = "retaining_heads", kQueryAware = "query_aware",
                           kRandom = "random";
// Rows that the retaining heads score at a time, so that the hidden layer stays in the CPU's cache.
constexpr int64_t kScoreChunk = 1024;

class RetainingHeadCompressor : public Compressor {
 public:
  RetainingHeadCompressor(const model::Weights& weights, kernels::Backend& backend,
                          comm::Communicator* tensor)
      : weights_(weights), backend_(backend), tensor_(tensor), hidden_(backend), sums_(backend) {}
  std::string_view name() const override { return kRetainingHeads; }
  bool UsesPreRope() const override { return true; }

  absl::Status Score(const ScoreCall& call, kernels::Stream& stream) override {
    const model::LayerWeights& layer = weights_.layer(call.layer);
    for (int64_t begin = 0; begin < call.qkv.rows(); begin += kScoreChunk) {
      const int64_t end = std::min(begin + kScoreChunk, call.qkv.rows());
      const TensorView qkv = call.qkv.Rows(begin, end);
      const int64_t width = layer.retaining_fc1.shape[0];
      APB_ASSIGN_OR_RETURN(const TensorView hidden,
                           hidden_.Get(call.qkv.dtype, {end - begin, width}));
      if (tensor_ == nullptr) {
        backend_.Linear({.x = qkv, .weight = layer.retaining_fc1, .out = hidden}, stream);
        backend_.SiluMul(hidden, {}, hidden, stream);
      } else {  // fc1 needs all ranks' heads, hence the sum; fc2 scores this rank's KV heads
        APB_ASSIGN_OR_RETURN(const TensorView sums,
                             sums_.Get(kernels::DType::kF32, {end - begin, width}));
        backend_.Linear({.x = qkv, .weight = layer.retaining_fc1, .out = sums}, stream);
        APB_RETURN_IF_ERROR(tensor_->AllReduce(sums, comm::ReduceOp::kSum, stream));
        backend_.SiluMul(sums, {}, hidden, stream);
      }
      backend_.Linear(
          {.x = hidden, .weight = layer.retaining_fc2, .out = call.scores.Rows(begin, end)},
          stream);
    }
    return absl::OkStatus();
  }

 private:
  const model::Weights& weights_;
  kernels::Backend& backend_;
  comm::Communicator* const tensor_;
  core::Workspace hidden_, sums_;
};

class QueryAwareCompressor : public Compressor {
 public:
  QueryAwareCompressor(const model::Weights& weights, kernels::Backend& backend)
      : scale_(1.0f / std::sqrt(static_cast<float>(weights.config().head_dim))),
        backend_(backend) {}
  std::string_view name() const override { return kQueryAware; }
  bool UsesPreRope() const override { return false; }

  // Without an embedded query all scores are equal, and top-k takes the first tokens.
  absl::Status Score(const ScoreCall& call, kernels::Stream& stream) override {
    backend_.KeyScores({.k = call.k, .query = call.query, .scale = scale_, .scores = call.scores},
                       stream);
    return absl::OkStatus();
  }

 private:
  const float scale_;
  kernels::Backend& backend_;
};

class RandomCompressor : public Compressor {
 public:
  explicit RandomCompressor(kernels::Backend& backend) : backend_(backend) {}
  std::string_view name() const override { return kRandom; }
  bool UsesPreRope() const override { return false; }
  bool Pools() const override { return false; }

  absl::Status Score(const ScoreCall& call, kernels::Stream& stream) override {
    const int64_t rows = call.scores.shape[0], heads = call.scores.shape[1];
    std::vector<float> scores(rows * heads);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        uint64_t z = (static_cast<uint64_t>(call.first_token + t) * 4099 + h) * 1031 + call.layer +
                     0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        scores[t * heads + h] = static_cast<float>((z ^ (z >> 31)) >> 40);
      }
    }
    backend_.Copy(TensorView::Contiguous(scores.data(), DType::kF32, {rows, heads}), call.scores,
                  stream);
    return stream.Synchronize();
  }

 private:
  kernels::Backend& backend_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Compressor>> CreateCompressor(std::string_view name,
                                                             const model::Weights& weights,
                                                             kernels::Backend& backend,
                                                             comm::Communicator* tensor) {
  if (name == kRetainingHeads) {
    if (!weights.has_retaining_heads()) {
      return absl::FailedPreconditionError(
          "compressor 'retaining_heads': the checkpoint has no retaining_heads.safetensors");
    }
    return std::make_unique<RetainingHeadCompressor>(weights, backend, tensor);
  }
  if (name == kQueryAware) return std::make_unique<QueryAwareCompressor>(weights, backend);
  if (name == kRandom) return std::make_unique<RandomCompressor>(backend);
  return absl::InvalidArgumentError(
      absl::StrCat("compressor '", std::string(name),
                   "' is unknown (retaining_heads, query_aware and random are known)"));
}

bool UsesQuery(std::string_view name) { return name == kQueryAware; }

int64_t CompressorBytes(std::string_view name, int64_t rows, const ModelShape& model) {
  if (name != kRetainingHeads) return 0;
  return std::min(rows, kScoreChunk) * model.retaining_width * model.element_bytes;
}

}  // namespace apb::context_parallel
