// The weights of a model, by layer: those of a checkpoint (on a CPU mostly views into the mapped
// files, which all ranks of a machine share), or random ones of a given shape for benchmarks.
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
  // Type of weights and activations. By default config.json's, except that a CPU backend, which
  // does not compute in float16, takes bfloat16 instead of it.
  std::optional<kernels::DType> dtype;
  // kI8Block or kI4Block: the weights of all products are quantized to such blocks, except that the
  // output projection becomes kI8Block in both cases. CPU backends only. Weights whose number of
  // inputs is not a multiple of 32 are not quantized; weights that are quantized in the checkpoint
  // keep the checkpoint's quantization.
  std::optional<kernels::DType> quantize;
  int threads = 0;  // threads that may quantize at a time; 0: as many as read
  // Called by the calling thread after each piece that has been copied.
  std::function<void(const LoadProgress&)> progress;
};

// The block type of the option values "int8" and "int4"; nullopt for every other name.
std::optional<kernels::DType> BlockTypeNamed(std::string_view name);

// Counts of what Load did.
struct LoadReport {
  kernels::DType checkpoint_dtype = kernels::DType::kBF16;  // config.json's
  int64_t converted_tensors = 0;                 // tensors of another float type than the model's
  int64_t copied_bytes = 0;                      // bytes read from the files
  int64_t mapped_bytes = 0;                      // bytes used in the mapped files, without a copy
  int64_t products = 0;                          // weights of products
  int64_t int8_products = 0, int4_products = 0;  // weights of products in blocks
  int64_t quantized_bytes = 0;                   // bytes of these blocks
  int64_t quantized_again = 0;  // packed weights that blocks cannot hold as the checkpoint has them
  std::vector<std::string> unquantized;  // weights that could not be quantized, with the reason
};

class Weights {
 public:
  // Opens `<directory>/model.safetensors`, or else the files that model.safetensors.index.json
  // names, and `retaining_heads.safetensors` if there is one. Names and shapes are checked against
  // config.json; the error names the tensor. A CPU backend uses a tensor in the mapped file,
  // without a copy, if type and alignment fit. Other tensors are copied, and converted if they are
  // of another float type (kInvalidArgument for a number that does not fit). Copies that one
  // product can compute follow one another (LayerWeights). With a tensor parallel share, heads, MLP
  // columns and rows of the output projection are the share's (the embedding is whole), and only
  // these are copied; kInvalidArgument if the shares do not divide the KV heads.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const std::string& directory,
                                                       kernels::Backend& backend, Share tensor = {},
                                                       const LoadOptions& options = {});
  // Gaussian weights with a fixed seed, for benchmarks and tests, with retaining heads of width
  // `retaining_width` (0: none). Quantized as Load does.
  static absl::StatusOr<std::unique_ptr<Weights>> Random(
      const ModelConfig& config, uint64_t seed, int64_t retaining_width, kernels::Backend& backend,
      Share tensor = {}, std::optional<kernels::DType> quantize = {});
  ~Weights();

  // The whole model's shape (shape() is the share's), with the type of these weights.
  const ModelConfig& config() const { return config_; }
  const LoadReport& load_report() const { return load_report_; }
  // Type of the products' weights: "int4" or "int8" if some are such blocks, else the model's type.
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
  const kernels::TensorView& output() const { return output_; }          // [V of the share, D]
  bool has_retaining_heads() const {
    return config_.layers > 0 && layers_[0].retaining_fc1.present();
  }

 private:
  struct Storage;  // mapped files and memory of the backend
  Weights();
  absl::Status Init(const ModelConfig& config, Share tensor);
  // The tensors of a layer, or (layer -1) those outside of the layers, with pointers to the views
  // here that are to show them; with retaining heads of `retaining_width` (0: none, -1: any).
  std::vector<WantedTensor> TensorsOf(int layer, int64_t retaining_width);
  // Finds all these tensors in the checkpoint. Their `out` then shows the share's part.
  absl::Status FindAll(bool has_heads, std::vector<std::vector<WantedTensor>>& all);
  // The type of a tensor's weights in the backend's memory.
  kernels::DType TypeOf(const WantedTensor& wanted);
  void Report(const WantedTensor& wanted, int64_t bytes);
  // Allocates memory of the backend for the tensors that cannot be used in the file, lets their
  // views show it, and adds the copies to be made.
  absl::Status Place(std::vector<WantedTensor>& wanted, kernels::Backend& backend,
                     std::vector<WeightCopy>& copies);
  // Sets the views that are derived from others. To be called when these are final.
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
