// The weights of a checkpoint, by layer: views into the mapped safetensors files (one copy for all
// ranks of a machine), or random ones of a given shape for benchmarks.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/layer_weights.h"
#include "engine/model/model_config.h"
#include "engine/model/weight_copy.h"
#include "kernels/backend.h"

namespace apb::model {

struct WantedTensor;

struct LoadOptions {
  // Of weights and activations. By default the type that config.json says, but bfloat16 for float16
  // where the backend's place is the host, whose backends do not compute in float16.
  std::optional<kernels::DType> dtype;
  // kI8Block or kI4Block: the weights of all products become blocks of that, but those of the
  // output projection kI8Block in either case. Of backends whose place is the host. Weights whose
  // number of inputs is no multiple of 32 stay as they are, and so does what the checkpoint has
  // quantized.
  std::optional<kernels::DType> quantize;
  int threads = 0;  // that may quantize at a time; 0: as many as read
  // Told after each piece that has been copied, by the calling thread.
  std::function<void(const LoadProgress&)> progress;
};

// "int8" and "int4", as options have them; nullopt for every other name.
std::optional<kernels::DType> BlockTypeNamed(std::string_view name);

// What loading did.
struct LoadReport {
  kernels::DType checkpoint_dtype = kernels::DType::kBF16;  // that config.json says
  int64_t converted_tensors = 0;                            // of another type than the model's
  int64_t copied_bytes = 0;                                 // read from the files
  int64_t mapped_bytes = 0;                                 // computed on in the files
  int64_t products = 0;                                     // weights of products
  int64_t int8_products = 0, int4_products = 0;             // in blocks
  int64_t quantized_bytes = 0;                              // of those
  int64_t quantized_again = 0;           // that blocks cannot hold as the checkpoint has them
  std::vector<std::string> unquantized;  // that were to be quantized, and why they are not
};

class Weights {
 public:
  // Opens `<directory>/model.safetensors` or else the shards of model.safetensors.index.json, and
  // `retaining_heads.safetensors` if it is there. Names and shapes are checked against config.json;
  // the error names the tensor. Tensors are computed on in the mapped file where the backend can do
  // that (its place is the host, type and alignment fit). The others are copied, and converted if
  // they are of another float type (kInvalidArgument for a number that does not fit); copies that
  // one product can compute lie side by side (LayerWeights). With a tensor parallel share, heads,
  // MLP columns and vocabulary are that share's (the embedding is whole), and no more is copied;
  // kInvalidArgument where the KV heads do not divide.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const std::string& directory,
                                                       kernels::Backend& backend, Share tensor = {},
                                                       const LoadOptions& options = {});
  // Gaussian weights with a fixed seed, for benchmarks and tests; with retaining heads of width
  // `retaining_width` (0 = none); quantized as by Load.
  static absl::StatusOr<std::unique_ptr<Weights>> Random(
      const ModelConfig& config, uint64_t seed, int64_t retaining_width, kernels::Backend& backend,
      Share tensor = {}, std::optional<kernels::DType> quantize = {});
  ~Weights();

  // Of the whole model; what these weights have of it is below. Its type is that of these weights.
  const ModelConfig& config() const { return config_; }
  const LoadReport& load_report() const { return load_report_; }
  // Of the products' weights: "int4" or "int8" where some are, else the model's type.
  std::string_view weight_type() const;
  const PartShape& shape() const { return shape_; }
  const Share& share() const { return share_; }
  int64_t query_heads() const { return shape_.query_heads.length(); }
  int64_t kv_heads() const { return shape_.kv_heads.length(); }
  int64_t mlp_size() const { return shape_.mlp.length(); }
  int64_t qkv_width() const { return (query_heads() + 2 * kv_heads()) * config_.head_dim; }
  const LayerWeights& layer(int i) const { return layers_[i]; }
  const kernels::TensorView& embedding() const { return embedding_; }    // [V, D]
  const kernels::TensorView& final_norm() const { return final_norm_; }  // [D]
  const kernels::TensorView& output() const { return output_; }  // [V, D], of a share its rows
  bool has_retaining_heads() const {
    return config_.layers > 0 && layers_[0].retaining_fc1.present();
  }

 private:
  struct Storage;  // mapped files and memory of the backend
  Weights();
  absl::Status Init(const ModelConfig& config, Share tensor);
  // What config_ asks for in a layer, or (layer -1) outside of the layers, with the views here that
  // are to show it; with retaining heads of a width (0 = none, -1 = any).
  std::vector<WantedTensor> TensorsOf(int layer, int64_t retaining_width);
  // What of that the checkpoint has, by layer, with `out` showing the share's part of it.
  absl::Status FindAll(bool has_heads, std::vector<std::vector<WantedTensor>>& all);
  // The type in which a tensor is computed on.
  kernels::DType TypeOf(const WantedTensor& wanted);
  void Report(const WantedTensor& wanted, int64_t bytes);
  // Lets the views that cannot stay where they are show memory of the backend, and adds what has to
  // be copied there.
  absl::Status Place(std::vector<WantedTensor>& wanted, kernels::Backend& backend,
                     std::vector<WeightCopy>& copies);
  // Sets the views that follow from others, when those show what they will show for good.
  void SetDerivedViews();
  ModelConfig config_;
  LoadReport load_report_;
  std::optional<kernels::DType> quantize_;
  Share share_;
  PartShape shape_;
  std::vector<LayerWeights> layers_;
  kernels::TensorView embedding_, final_norm_, output_;
  std::unique_ptr<Storage> storage_;
};

}  // namespace apb::model
