#include "engine/model/model_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/fingerprint.h"
#include "engine/base/status_macros.h"
#include "engine/model/json_file.h"

namespace apb::model {
namespace {

using nlohmann::json;
constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxTokenId = 10'000'000;
constexpr std::pair<std::string_view, kernels::DType> kTypes[] = {
    {"bfloat16", kernels::DType::kBF16},
    {"float16", kernels::DType::kF16},
    {"float32", kernels::DType::kF32}};

absl::Status Bad(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, ": ", what));
}

// Reads typed fields with ranges and keeps the first error.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}
  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }

  int64_t Integer(const char* name, int64_t low, int64_t high, int64_t fallback = -1) {
    if (!Has(name)) {
      if (fallback < 0) Fail(name, "is missing");
      return fallback < 0 ? low : fallback;
    }
    const json& v = object_[name];
    if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<uint64_t>() > INT64_MAX) ||
        v.get<int64_t>() < low || v.get<int64_t>() > high) {
      Fail(name, absl::StrCat("must be a whole number from ", low, " to ", high));
      return low;
    }
    return v.get<int64_t>();
  }
  double Number(const char* name, double low, double high, double fallback) {
    if (!Has(name)) return fallback;
    const json& v = object_[name];
    if (!v.is_number() || !(v.get<double>() >= low) || !(v.get<double>() <= high)) {
      Fail(name, absl::StrCat("must be a number from ", low, " to ", high));
      return fallback;
    }
    return v.get<double>();
  }
  bool Boolean(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_boolean()) {
      Fail(name, "must be true or false");
      return fallback;
    }
    return object_[name].get<bool>();
  }
  std::string String(const char* name, const std::string& fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_string()) {
      Fail(name, "must be a string");
      return fallback;
    }
    return object_[name].get<std::string>();
  }
  // A list, if present, holds nothing but `value`.
  void RequireAll(const char* name, const std::string& value) {
    if (!Has(name)) return;
    const json& list = object_[name];
    const bool fine = list.is_array() && std::all_of(list.begin(), list.end(), [&](const json& v) {
                        return v.is_string() && v.get<std::string>() == value;
                      });
    if (!fine) Fail(name, absl::StrCat("only ", value, " is supported"));
  }
  void Fail(absl::string_view name, absl::string_view what) {
    if (status_.ok()) status_ = Bad(name, what);
  }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

absl::StatusOr<RopeType> ReadRopeType(Fields& f, const std::string& name) {
  const std::string type = f.String("rope_type", f.String("type", "default"));
  if (type == "default") return RopeType::kDefault;
  if (type == "linear") return RopeType::kLinear;
  if (type == "llama3") return RopeType::kLlama3;
  if (type == "yarn") return RopeType::kYarn;
  return Bad(absl::StrCat(name, ".rope_type"),
             absl::StrCat("'", type, "' is not supported (default, linear, llama3 and yarn are)"));
}

// The numbers of one scaling type, as transformers reads them: a missing factor of yarn is the
// ratio of the lengths, and a length outside of the scaling object wins.
absl::Status ReadScaling(Fields& top, Fields& f, const std::string& name, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  const double longest = static_cast<double>(config.max_positions);
  const auto missing = [&](const char* field) {
    return f.Has(field) ? absl::OkStatus() : Bad(absl::StrCat(name, ".", field), "is missing");
  };
  rope.original_max_positions =
      top.Number("original_max_position_embeddings", 1, 1e9,
                 f.Number("original_max_position_embeddings", 1, 1e9, longest));
  if (rope.type != RopeType::kYarn) APB_RETURN_IF_ERROR(missing("factor"));
  rope.factor = f.Number("factor", 1.0, 1e6, std::max(1.0, longest / rope.original_max_positions));
  if (rope.type == RopeType::kLlama3) {
    APB_RETURN_IF_ERROR(missing("low_freq_factor"));
    APB_RETURN_IF_ERROR(missing("high_freq_factor"));
    rope.low_freq_factor = f.Number("low_freq_factor", 1e-6, 1e6, 1.0);
    rope.high_freq_factor = f.Number("high_freq_factor", 1e-6, 1e6, 4.0);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      f.Fail(absl::StrCat(name, ".high_freq_factor"), "must be greater than low_freq_factor");
  }
  rope.beta_fast = f.Number("beta_fast", 1e-6, 1e6, 32.0);
  rope.beta_slow = f.Number("beta_slow", 1e-6, 1e6, 1.0);
  if (f.Has("attention_factor"))
    rope.attention_factor = f.Number("attention_factor", 1e-6, 1e3, 1.0);
  rope.mscale = f.Number("mscale", 0.0, 1e3, 0.0);
  rope.mscale_all_dim = f.Number("mscale_all_dim", 0.0, 1e3, 0.0);
  rope.truncate = f.Boolean("truncate", true);
  return absl::OkStatus();
}

absl::Status ReadRope(const json& root, ModelConfig& config) {
  Fields top(root);
  // A base of 1 or less has no decreasing frequencies; yarn divides by its logarithm.
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
  Fields f(scaling);
  config.rope.theta = f.Number("rope_theta", kMinTheta, kMaxTheta, config.rope.theta);
  if (f.Number("partial_rotary_factor", 0, 1, 1) != 1)
    f.Fail("partial_rotary_factor", "only 1 is supported");
  APB_ASSIGN_OR_RETURN(config.rope.type, ReadRopeType(f, name));
  if (config.rope.type != RopeType::kDefault)
    APB_RETURN_IF_ERROR(ReadScaling(top, f, name, config));
  APB_RETURN_IF_ERROR(top.status());
  return f.status();
}

absl::Status ReadEosTokenIds(const json& root, absl::string_view file, std::vector<int32_t>& out) {
  if (!root.contains("eos_token_id") || root["eos_token_id"].is_null()) return absl::OkStatus();
  const json& v = root["eos_token_id"];
  const json list = v.is_array() ? v : json::array({v});
  std::vector<int32_t> ids;
  for (const json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{kMaxTokenId}) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": eos_token_id: must be token ids, each a whole number from 0 to ", kMaxTokenId));
    }
    ids.push_back(id.get<int32_t>());
  }
  out = std::move(ids);
  return absl::OkStatus();
}

absl::Status ReadFamily(Fields& f, ModelConfig& config) {
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
  f.RequireAll("layer_types", "full_attention");
  const std::string activation = f.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") f.Fail("hidden_act", "only silu is supported");
  return f.status();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text) {
  APB_ASSIGN_OR_RETURN(const json root, ParseJsonObject(text, "config.json"));
  ModelConfig config;
  Fields f(root);
  if (!root.contains("architectures") || !root["architectures"].is_array() ||
      root["architectures"].empty() || !root["architectures"][0].is_string()) {
    return Bad("architectures", "is missing");
  }
  config.architecture = root["architectures"][0].get<std::string>();
  config.vocab_size = f.Integer("vocab_size", 1, 10'000'000);
  config.hidden_size = f.Integer("hidden_size", 1, 1 << 20);
  config.mlp_size = f.Integer("intermediate_size", 1, 1 << 22);
  config.layers = static_cast<int32_t>(f.Integer("num_hidden_layers", 1, 1000));
  config.query_heads = f.Integer("num_attention_heads", 1, 4096);
  config.kv_heads = f.Integer("num_key_value_heads", 1, 4096, config.query_heads);
  config.max_positions = f.Integer("max_position_embeddings", 1, 1 << 30, 2048);
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
  const std::string dtype = f.String("dtype", f.String("torch_dtype", "bfloat16"));
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
  APB_RETURN_IF_ERROR(ReadEosTokenIds(root, "config.json", config.eos_token_ids));
  if (f.Has("bos_token_id"))
    config.bos_token_id = static_cast<int32_t>(f.Integer("bos_token_id", 0, kMaxTokenId));
  APB_RETURN_IF_ERROR(f.status());
  config.fingerprint = base::Fingerprint(text);
  return config;
}

std::string_view TorchName(kernels::DType dtype) {
  for (const auto& [name, type] : kTypes) {
    if (type == dtype) return name;
  }
  return "none";
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadSmallFile(directory + "/config.json", kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(
        absl::StrCat(text.status().message(), " (is this a checkpoint directory?)"));
  }
  APB_RETURN_IF_ERROR(text.status());
  APB_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(*text));
  const std::string path = directory + "/generation_config.json";
  text = ReadSmallFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return config;
  APB_RETURN_IF_ERROR(text.status());
  APB_ASSIGN_OR_RETURN(const json generation, ParseJsonObject(*text, path));
  APB_RETURN_IF_ERROR(ReadEosTokenIds(generation, path, config.eos_token_ids));
  return config;
}

}  // namespace apb::model
