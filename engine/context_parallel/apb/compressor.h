// Compressors choose the tokens that a host passes on: they score each local token for each KV
// head, and the best tokens are taken (docs/algorithms.md).
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

// Consecutive rows to score.
struct ScoreCall {
  int layer = 0;
  int64_t first_token = 0;  // document token number of the first row; -1 for anchor rows
  kernels::TensorView qkv;  // [T, qkv_width] before RoPE; present if UsesPreRope()
  kernels::TensorView k;    // [T, n_kv, d] after RoPE; present otherwise
  // [m, n_q, d] after RoPE: the anchor's rows of the embedded query; m = 0 without them.
  kernels::TensorView query;
  kernels::TensorView scores;  // [T, n_kv] f32, to be filled
};

class Compressor {
 public:
  virtual ~Compressor() = default;
  virtual std::string_view name() const = 0;
  // True: Score reads the packed q, k, v before RoPE. False: it reads the keys after RoPE.
  virtual bool UsesPreRope() const = 0;
  // Whether the scores are smoothed by a max-pool over 5 tokens.
  virtual bool Pools() const { return true; }
  virtual absl::Status Score(const ScoreCall& call, kernels::Stream& stream) = 0;
};

// The compressors, by name:
//   retaining_heads   Locret's MLP on q, k, v before RoPE; kFailedPrecondition if the
//                     checkpoint has no retaining heads
//   query_aware       mean attention logit of the embedded query's rows; needs no training
//   random            a hash of (layer, head, token), for ablations
// kInvalidArgument for another name. `tensor` is the tensor group, whose ranks hold the other
// shares of the weights and score the same rows together; null without tensor parallelism. The
// references must outlive the compressor.
absl::StatusOr<std::unique_ptr<Compressor>> CreateCompressor(std::string_view name,
                                                             const model::Weights& weights,
                                                             kernels::Backend& backend,
                                                             comm::Communicator* tensor = nullptr);

// Whether scoring needs the anchor's query rows, even on a rank whose hosts do not see the anchor.
bool UsesQuery(std::string_view name);

// Bytes of device memory that a compressor takes to score `rows` rows.
int64_t CompressorBytes(std::string_view name, int64_t rows, const ModelShape& model);

}  // namespace apb::context_parallel
