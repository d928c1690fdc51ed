// config.json of a Llama-family checkpoint as one struct. Fields carry their unit or shape.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/quantization_config.h"
#include "kernels/tensor_view.h"

namespace apb::model {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                // linear, llama3, yarn
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  double original_max_positions = 0;  // llama3, yarn
  double beta_fast = 32.0;            // yarn
  double beta_slow = 1.0;             // yarn
  double attention_factor = 0.0;      // yarn; 0: derived from factor and mscale
  double mscale = 0.0;                // yarn, optional
  double mscale_all_dim = 0.0;        // yarn, optional
  bool truncate = true;               // yarn: correction range rounded to whole dimensions
};

struct ModelConfig {
  std::string architecture;  // e.g. LlamaForCausalLM
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;    // D
  int64_t mlp_size = 0;       // F
  int32_t layers = 0;         // L
  int64_t query_heads = 0;    // n_q
  int64_t kv_heads = 0;       // n_kv, divides n_q
  int64_t head_dim = 0;       // d
  int64_t max_positions = 0;  // tokens
  double rms_norm_epsilon = 1e-6;
  bool tied_embeddings = false;
  bool qkv_bias = false;     // Qwen 2.5 (and attention_bias of Llama)
  bool output_bias = false;  // attention_bias of Llama: o_proj too
  bool qk_norm = false;      // Qwen 3
  RopeConfig rope;
  kernels::DType dtype = kernels::DType::kBF16;  // of weights and activations
  QuantizationConfig quantization;               // of the checkpoint's weights
  std::string fingerprint;                       // as in base::CheckpointConfig

  int64_t qkv_width() const { return (query_heads + 2 * kv_heads) * head_dim; }
};

// The name of a model's type in config.json: "bfloat16", "float16" or "float32".
std::string_view TorchName(kernels::DType dtype);

// Reads the fields that base::LoadCheckpointConfig reads and the rest of config.json.
// kInvalidArgument names the field that is missing, out of range or not supported (e.g. sliding
// windows shorter than the model's context, MoE).
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text);

}  // namespace apb::model
