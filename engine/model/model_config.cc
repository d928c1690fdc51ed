#include "engine/model/model_config.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/checkpoint_config.h"
#include "engine/base/field_error.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"

namespace apb::model {
namespace {

using base::JsonReader;
using nlohmann::json;

constexpr std::pair<std::string_view, kernels::DType> kTypes[] = {
    {"bfloat16", kernels::DType::kBF16},
    {"float16", kernels::DType::kF16},
    {"float32", kernels::DType::kF32}};
constexpr char kPrefix[] = "config.json: ";

absl::Status Bad(std::string_view field, std::string_view problem) {
  return base::InvalidField(absl::StrCat(kPrefix, base::AbslView(field)), problem);
}

// layer_types, if present, must be full_attention for all layers.
void RequireFullAttention(JsonReader& f) {
  const json* list = f.Find("layer_types");
  if (list == nullptr) return;
  const bool fine = list->is_array() && std::all_of(list->begin(), list->end(), [](const json& v) {
                      return v == "full_attention";
                    });
  if (!fine) f.Fail("layer_types", "only full_attention is supported");
}

absl::StatusOr<RopeType> ReadRopeType(JsonReader& f, const std::string& name) {
  const std::string type = f.String("rope_type", f.String("type", "default"));
  if (type == "default") return RopeType::kDefault;
  if (type == "linear") return RopeType::kLinear;
  if (type == "llama3") return RopeType::kLlama3;
  if (type == "yarn") return RopeType::kYarn;
  return Bad(absl::StrCat(name, ".rope_type"),
             absl::StrCat("'", type, "' is not supported (default, linear, llama3 and yarn are)"));
}

// Reads the numbers of a scaling type as transformers does: yarn's default factor is the ratio of
// the two lengths, and an original length outside of the scaling object takes precedence.
void ReadScaling(JsonReader& top, JsonReader& f, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  const double longest = static_cast<double>(config.max_positions);
  rope.original_max_positions =
      top.Number("original_max_position_embeddings", 1, 1e9,
                 f.Number("original_max_position_embeddings", 1, 1e9, longest));
  std::optional<double> ratio;
  if (rope.type == RopeType::kYarn) ratio = std::max(1.0, longest / rope.original_max_positions);
  rope.factor = f.Number("factor", 1.0, 1e6, ratio);
  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = f.Number("low_freq_factor", 1e-6, 1e6);
    rope.high_freq_factor = f.Number("high_freq_factor", 1e-6, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      f.Fail("high_freq_factor", "must be greater than low_freq_factor");
  }
  rope.beta_fast = f.Number("beta_fast", 1e-6, 1e6, 32.0);
  rope.beta_slow = f.Number("beta_slow", 1e-6, 1e6, 1.0);
  if (f.Has("attention_factor"))
    rope.attention_factor = f.Number("attention_factor", 1e-6, 1e3, 1.0);
  rope.mscale = f.Number("mscale", 0.0, 1e3, 0.0);
  rope.mscale_all_dim = f.Number("mscale_all_dim", 0.0, 1e3, 0.0);
  rope.truncate = f.Boolean("truncate", true);
}

absl::Status ReadRope(const json& root, ModelConfig& config) {
  JsonReader top(root, kPrefix);
  // With a theta of 1 or less, frequencies would not decrease; yarn divides by its logarithm.
  constexpr double kMinTheta = 1.001, kMaxTheta = 1e12;
  config.rope.theta = top.Number("rope_theta", kMinTheta, kMaxTheta, 10000.0);
  if (top.Number("partial_rotary_factor", 0, 1, 1) != 1)
    top.Fail("partial_rotary_factor", "only 1 is supported");
  APB_RETURN_IF_ERROR(top.status());
  const std::string name = top.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.Has(name.c_str())) return absl::OkStatus();
  const json& scaling = root[name];
  if (!scaling.is_object()) return Bad(name, "must be an object");
  for (const auto& [key, value] : scaling.items()) {
    if (value.is_object())
      return Bad(absl::StrCat(name, ".", key), "parameters by kind of layer are not supported");
  }
  JsonReader f(scaling, absl::StrCat(kPrefix, name, "."));
  config.rope.theta = f.Number("rope_theta", kMinTheta, kMaxTheta, config.rope.theta);
  if (f.Number("partial_rotary_factor", 0, 1, 1) != 1)
    f.Fail("partial_rotary_factor", "only 1 is supported");
  APB_ASSIGN_OR_RETURN(config.rope.type, ReadRopeType(f, name));
  if (config.rope.type != RopeType::kDefault) ReadScaling(top, f, config);
  APB_RETURN_IF_ERROR(top.status());
  return f.status();
}

absl::Status ReadFamily(JsonReader& f, ModelConfig& config) {
  if (config.architecture == "LlamaForCausalLM") {
    config.qkv_bias = config.output_bias = f.Boolean("attention_bias", false);
    if (f.Boolean("mlp_bias", false)) f.Fail("mlp_bias", "only false is supported");
  } else if (config.architecture == "MistralForCausalLM") {
    if (f.Has("sliding_window") &&
        f.Integer("sliding_window", 1, INT32_MAX) < config.max_positions) {
      f.Fail("sliding_window",
             "sliding windows shorter than max_position_embeddings are not supported");
    }
  } else if (config.architecture == "Qwen2ForCausalLM") {
    config.qkv_bias = true;
    if (f.Boolean("use_sliding_window", false))
      f.Fail("use_sliding_window", "only false is supported");
  } else if (config.architecture == "Qwen3ForCausalLM") {
    config.qk_norm = true;
    config.qkv_bias = config.output_bias = f.Boolean("attention_bias", false);
    if (f.Boolean("use_sliding_window", false))
      f.Fail("use_sliding_window", "only false is supported");
  } else {
    f.Fail("architectures",
           absl::StrCat(
               "'", config.architecture,
               "' is not supported (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and "
               "Qwen3ForCausalLM are)"));
  }
  RequireFullAttention(f);
  const std::string activation = f.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") f.Fail("hidden_act", "only silu is supported");
  return f.status();
}

absl::StatusOr<ModelConfig> ReadModelConfig(const base::CheckpointConfig& checkpoint) {
  const json& root = checkpoint.root;
  ModelConfig config;
  JsonReader f(root, kPrefix);
  if (!root.contains("architectures") || !root["architectures"].is_array() ||
      root["architectures"].empty() || !root["architectures"][0].is_string()) {
    return Bad("architectures", "is missing");
  }
  config.architecture = root["architectures"][0].get<std::string>();
  config.vocab_size = checkpoint.vocab_size;
  config.hidden_size = f.Integer("hidden_size", 1, 1 << 20);
  config.mlp_size = f.Integer("intermediate_size", 1, 1 << 22);
  config.layers = static_cast<int32_t>(f.Integer("num_hidden_layers", 1, 1000));
  config.query_heads = f.Integer("num_attention_heads", 1, 4096);
  config.kv_heads = f.Integer("num_key_value_heads", 1, 4096, config.query_heads);
  config.max_positions = checkpoint.max_positions;
  config.rms_norm_epsilon = f.Number("rms_norm_eps", 1e-12, 1.0, 1e-6);
  config.tied_embeddings = f.Boolean("tie_word_embeddings", false);
  APB_RETURN_IF_ERROR(f.status());
  if (!f.Has("head_dim") && config.hidden_size % config.query_heads != 0) {
    return Bad("num_attention_heads", "does not divide hidden_size and there is no head_dim");
  }
  config.head_dim = f.Integer("head_dim", 2, 256, config.hidden_size / config.query_heads);
  if (config.head_dim % 2 != 0 || config.head_dim > 256 || config.head_dim < 2)
    f.Fail("head_dim", "must be even and from 2 to 256");
  if (config.query_heads % config.kv_heads != 0)
    f.Fail("num_key_value_heads", "must divide num_attention_heads");
  APB_RETURN_IF_ERROR(ReadFamily(f, config));
  APB_RETURN_IF_ERROR(ReadRope(root, config));
  const std::string& dtype = checkpoint.dtype;
  bool known = false;
  for (const auto& [name, type] : kTypes) {
    if (name != dtype) continue;
    config.dtype = type;
    known = true;
  }
  if (!known) {
    f.Fail("torch_dtype", absl::StrCat("'", dtype,
                                       "' is not supported (bfloat16, float16 and float32 are; "
                                       "convert the checkpoint)"));
  }
  APB_ASSIGN_OR_RETURN(config.quantization, ReadQuantizationConfig(root));
  APB_RETURN_IF_ERROR(f.status());
  config.fingerprint = checkpoint.fingerprint;
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text) {
  APB_ASSIGN_OR_RETURN(const base::CheckpointConfig checkpoint, base::ParseCheckpointConfig(text));
  return ReadModelConfig(checkpoint);
}

std::string_view TorchName(kernels::DType dtype) {
  for (const auto& [name, type] : kTypes) {
    if (type == dtype) return name;
  }
  return "none";
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  APB_ASSIGN_OR_RETURN(const base::CheckpointConfig checkpoint,
                       base::LoadCheckpointConfig(directory));
  return ReadModelConfig(checkpoint);
}

}  // namespace apb::model
