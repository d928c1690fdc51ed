// The weights of a checkpoint, by layer: views into the mapped safetensors files (one copy for all
// ranks of a machine), or random ones of a given shape for benchmarks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"
#include "kernels/backend.h"

namespace apb::model {

struct LayerWeights {
  kernels::TensorView input_norm;              // [D]
  kernels::TensorView q_proj, k_proj, v_proj;  // [n_q d, D], [n_kv d, D], [n_kv d, D]
  kernels::TensorView q_bias, k_bias, v_bias;  // absent without qkv_bias
  kernels::TensorView q_norm, k_norm;          // [d], absent without qk_norm
  kernels::TensorView o_proj, o_bias;          // [D, n_q d]; bias absent as a rule
  kernels::TensorView post_norm;               // [D]
  kernels::TensorView gate_proj, up_proj;      // [F, D]
  kernels::TensorView down_proj;               // [D, F]
  // Retaining head (docs/algorithms.md): fc1 [d_R, qkv_width], fc2 [n_kv, d_R]; absent when the
  // model has none.
  kernels::TensorView retaining_fc1, retaining_fc2;
};

struct WantedTensor;

class Weights {
 public:
  // Maps `<directory>/model.safetensors` or else the shards of model.safetensors.index.json, and
  // `retaining_heads.safetensors` if it is there. Names, types and shapes are checked against
  // config.json; the error names the tensor (f16 checkpoints are refused, not converted). `backend`
  // gets copies of the tensors where its place is not the host.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const std::string& directory,
                                                       kernels::Backend& backend);
  // Gaussian weights with a fixed seed, for benchmarks and tests; with retaining heads of width
  // `retaining_width` (0 = none).
  static absl::StatusOr<std::unique_ptr<Weights>> Random(const ModelConfig& config, uint64_t seed,
                                                         int64_t retaining_width,
                                                         kernels::Backend& backend);
  ~Weights();

  const ModelConfig& config() const { return config_; }
  const LayerWeights& layer(int i) const { return layers_[i]; }
  const kernels::TensorView& embedding() const { return embedding_; }    // [V, D]
  const kernels::TensorView& final_norm() const { return final_norm_; }  // [D]
  const kernels::TensorView& output() const { return output_; }          // [V, D]
  bool has_retaining_heads() const {
    return config_.layers > 0 && layers_[0].retaining_fc1.present();
  }

 private:
  struct Storage;  // mapped files or owned buffers
  Weights();
  // All tensors that config_ asks for, pointing at the views here; with retaining heads of a width
  // (0 = none, -1 = any).
  std::vector<WantedTensor> Tensors(int64_t retaining_width);
  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  kernels::TensorView embedding_, final_norm_, output_;
  std::unique_ptr<Storage> storage_;
};

}  // namespace apb::model
