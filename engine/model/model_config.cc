#include "engine/model/model_config.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

using nlohmann::json;
constexpr size_t kMaxConfigBytes = 1 << 20;

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
  void Fail(absl::string_view name, absl::string_view what) {
    if (status_.ok()) status_ = Bad(name, what);
  }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

absl::Status ReadRope(const json& root, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  Fields top(root);
  rope.theta = top.Number("rope_theta", 1.0, 1e12, 10000.0);
  const char* name = top.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.Has(name)) return top.status();
  const json& scaling = root[name];
  if (!scaling.is_object()) return Bad(name, "must be an object");
  Fields f(scaling);
  rope.theta = f.Number("rope_theta", 1.0, 1e12, rope.theta);
  const std::string type = f.String("rope_type", f.String("type", "default"));
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
  } else {
    return Bad(
        absl::StrCat(name, ".rope_type"),
        absl::StrCat("'", type, "' is not supported (default, linear, llama3 and yarn are)"));
  }
  if (f.Number("partial_rotary_factor", 0, 1, 1) != 1 ||
      top.Number("partial_rotary_factor", 0, 1, 1) != 1) {
    return Bad("partial_rotary_factor", "only 1 is supported");
  }
  if (rope.type != RopeType::kDefault) {
    if (!f.Has("factor")) return Bad(absl::StrCat(name, ".factor"), "is missing");
    rope.factor = f.Number("factor", 1.0, 1e6, 1.0);
  }
  rope.original_max_positions = f.Number("original_max_position_embeddings", 1, 1e9,
                                         static_cast<double>(config.max_positions));
  rope.low_freq_factor = f.Number("low_freq_factor", 1e-6, 1e6, 1.0);
  rope.high_freq_factor = f.Number("high_freq_factor", 1e-6, 1e6, 4.0);
  if (rope.type == RopeType::kLlama3 && rope.high_freq_factor <= rope.low_freq_factor) {
    return Bad(absl::StrCat(name, ".high_freq_factor"), "must be greater than low_freq_factor");
  }
  rope.beta_fast = f.Number("beta_fast", 1e-6, 1e6, 32.0);
  rope.beta_slow = f.Number("beta_slow", 1e-6, 1e6, 1.0);
  rope.attention_factor = f.Number("attention_factor", 0.0, 1e3, 0.0);
  rope.mscale = f.Number("mscale", 0.0, 1e3, 0.0);
  rope.mscale_all_dim = f.Number("mscale_all_dim", 0.0, 1e3, 0.0);
  rope.truncate = f.Boolean("truncate", true);
  APB_RETURN_IF_ERROR(top.status());
  return f.status();
}

absl::Status ReadTokenIds(const json& root, const char* name, std::vector<int32_t>& out) {
  if (!root.contains(name) || root[name].is_null()) return absl::OkStatus();
  const json& v = root[name];
  const json list = v.is_array() ? v : json::array({v});
  out.clear();
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > 10'000'000)
      return Bad(name, "must be token ids");
    out.push_back(id.get<int32_t>());
  }
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
  const std::string activation = f.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") f.Fail("hidden_act", "only silu is supported");
  return f.status();
}

std::string Fingerprint(std::string_view bytes) {
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return absl::StrFormat("%016x", hash);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be opened (is --model a checkpoint directory?)"));
  std::string text(kMaxConfigBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxConfigBytes)
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than 1 MiB"));
  return text;
}

// nlohmann parses recursively; config files nest a few levels only.
bool NestsTooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string) {
      if (text[i] == '\\')
        ++i;
      else if (text[i] == '"')
        in_string = false;
    } else if (text[i] == '"') {
      in_string = true;
    } else if (text[i] == '{' || text[i] == '[') {
      if (++depth > 16) return true;
    } else if (text[i] == '}' || text[i] == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text) {
  if (NestsTooDeep(text)) return absl::InvalidArgumentError("config.json: nested too deeply");
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
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
  if (dtype == "bfloat16") {
    config.dtype = kernels::DType::kBF16;
  } else if (dtype == "float32") {
    config.dtype = kernels::DType::kF32;
  } else {
    f.Fail("torch_dtype",
           absl::StrCat("'", dtype,
                        "' is not supported (bfloat16 and float32 are; convert the checkpoint)"));
  }
  if (root.contains("quantization_config") && !root["quantization_config"].is_null())
    f.Fail("quantization_config", "quantised checkpoints are not supported");
  APB_RETURN_IF_ERROR(ReadTokenIds(root, "eos_token_id", config.eos_token_ids));
  if (f.Has("bos_token_id"))
    config.bos_token_id = static_cast<int32_t>(f.Integer("bos_token_id", 0, 10'000'000));
  APB_RETURN_IF_ERROR(f.status());
  config.fingerprint = Fingerprint(text);
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  APB_ASSIGN_OR_RETURN(const std::string text, ReadFile(directory + "/config.json"));
  APB_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(text));
  absl::StatusOr<std::string> generation = ReadFile(directory + "/generation_config.json");
  if (generation.ok() && !NestsTooDeep(*generation)) {
    const json root = json::parse(*generation, nullptr, false);
    if (root.is_object())
      APB_RETURN_IF_ERROR(ReadTokenIds(root, "eos_token_id", config.eos_token_ids));
  }
  return config;
}

}  // namespace apb::model
