// Which tokens a host passes on: a score per local token and KV head, of which the best are taken.
// docs/algorithms.md.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/model_shape.h"
#include "engine/core/tensor.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::context_parallel {

// One run of consecutive rows to be scored.
struct ScoreCall {
  int layer = 0;
  int64_t first_token = 0;     // document token number of the first row
  kernels::TensorView qkv;     // [T, qkv_width] before RoPE; present where UsesPreRope()
  kernels::TensorView k;       // [T, n_kv, d] after RoPE; present otherwise
  kernels::TensorView query;   // [m, n_q, d] after RoPE: the embedded query's rows of the anchor; m
                               // = 0 if there are none
  kernels::TensorView scores;  // [T, n_kv] f32, to be filled
};

class Compressor {
 public:
  virtual ~Compressor() = default;
  virtual std::string_view name() const = 0;
  // Scores come from the packed projections before RoPE (retaining heads), not from the keys after
  // it.
  virtual bool UsesPreRope() const = 0;
  // Scores are smoothed by a max-pool of 5 tokens.
  virtual bool Pools() const { return true; }
  virtual absl::Status Score(const ScoreCall& call, kernels::Stream& stream) = 0;
};

// retaining_heads: Locret's MLP on q, k, v before RoPE; kFailedPrecondition if the checkpoint has
// none. query_aware: training-free, mean attention logit of the embedded query's rows. random: a
// hash of (layer, head, token); for ablations. `tensor`: the ranks with the other tensor parallel
// shares of the weights, null if there are none; then all of them score the same rows together.
// References must outlive the compressor.
absl::StatusOr<std::unique_ptr<Compressor>> CreateCompressor(std::string_view name,
                                                             const model::Weights& weights,
                                                             kernels::Backend& backend,
                                                             comm::Communicator* tensor = nullptr);

// Scores need the anchor's query rows, also on a rank whose hosts do not see the anchor.
bool UsesQuery(std::string_view name);

// Bytes that a compressor takes on a device to score so many rows.
int64_t CompressorBytes(std::string_view name, int64_t rows, const ModelShape& model);

}  // namespace apb::context_parallel
