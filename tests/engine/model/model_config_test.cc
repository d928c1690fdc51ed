// Goal: config.json of the supported families is read correctly; anything else is refused with the
// field's name. Method: a valid object with one field changed at a time; random mutations, which
// must not crash.
#include "engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

nlohmann::json Base() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 100},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 512},
          {"eos_token_id", {1, 2}},
          {"torch_dtype", "bfloat16"}};
}

TEST(ModelConfig, ReadsLlama) {
  auto config = ParseModelConfig(Base().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->qkv_width(), 128);
  EXPECT_EQ(config->fingerprint.size(), 16u);
}

TEST(ModelConfig, Types) {
  for (const auto& [name, dtype] :
       std::map<std::string, kernels::DType>{{"bfloat16", kernels::DType::kBF16},
                                             {"float16", kernels::DType::kF16},
                                             {"float32", kernels::DType::kF32}}) {
    nlohmann::json root = Base();
    root["torch_dtype"] = name;
    auto config = ParseModelConfig(root.dump());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->dtype, dtype) << name;
    EXPECT_EQ(TorchName(dtype), name);
  }
}

TEST(ModelConfig, RefusesWhatItCannotCompute) {
  const std::tuple<const char*, nlohmann::json, const char*> cases[] = {
      {"architectures", {"MixtralForCausalLM"}, "architectures"},
      {"vocab_size", -1, "vocab_size"},
      {"vocab_size", "big", "vocab_size"},
      {"vocab_size", 18446744073709551615ull, "vocab_size"},
      {"num_hidden_layers", 0, "num_hidden_layers"},
      {"num_attention_heads", 3, "num_attention_heads"},
      {"num_key_value_heads", 3, "num_key_value_heads"},
      {"head_dim", 31, "head_dim"},
      {"hidden_act", "gelu", "hidden_act"},
      {"torch_dtype", "float8_e4m3fn", "torch_dtype"},
      {"mlp_bias", true, "mlp_bias"},
      {"rope_scaling", {{"rope_type", "longrope"}, {"factor", 2}}, "rope_scaling"},
      {"rope_scaling", {{"type", "linear"}}, "factor"},
      {"quantization_config", {{"bits", 4}}, "quantization_config.quant_method"},
      {"rms_norm_eps", -1, "rms_norm_eps"},
      {"rope_theta", 1, "rope_theta"},
      {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}, "low_freq_factor"},
      {"rope_parameters", {{"sliding_attention", {{"rope_theta", 1e4}}}}, "kind of layer"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor"},
      {"layer_types", {"full_attention", "sliding_attention"}, "layer_types"},
      {"eos_token_id", {1, -1}, "eos_token_id"},
      {"eos_token_id", "x", "eos_token_id"}};
  for (const auto& [field, value, message] : cases) {
    nlohmann::json root = Base();
    root[field] = value;
    auto config = ParseModelConfig(root.dump());
    ASSERT_FALSE(config.ok()) << field << " " << value;
    EXPECT_NE(config.status().message().find(message), std::string::npos) << config.status();
  }
  nlohmann::json mistral = Base();
  mistral["architectures"] = {"MistralForCausalLM"};
  mistral["sliding_window"] = 128;
  EXPECT_FALSE(ParseModelConfig(mistral.dump()).ok());
  mistral["sliding_window"] = nullptr;
  EXPECT_TRUE(ParseModelConfig(mistral.dump()).ok());
  EXPECT_FALSE(ParseModelConfig(std::string(100000, '[')).ok());
  EXPECT_EQ(LoadModelConfig("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelConfig, SurvivesRandomMutations) {
  const std::string valid = Base().dump();
  std::mt19937 rng(2);
  for (int i = 0; i < 5000; ++i) {
    std::string text = valid;
    for (int m = 0; m < 3; ++m) text[rng() % text.size()] = "0123456789-e.\"{}[],:ntf"[rng() % 23];
    (void)ParseModelConfig(text);
  }
}

TEST(QuantizationConfig, PublishedFormats) {
  const auto read = [](const char* text) {
    return ReadQuantizationConfig({{"quantization_config", nlohmann::json::parse(text)}});
  };
  const std::string weights = R"("weights": {"num_bits": 4, "type": "int", "strategy": "group"})";
  auto config = *read(("{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "
                       "\"config_groups\": {\"group_0\": {" +
                       weights + "}}}")
                          .c_str());
  EXPECT_EQ(config.format, PackedFormat::kPackQuantized);
  EXPECT_FALSE(config.quantizes_activations);
  config = *read(("{\"quant_method\": \"compressed-tensors\", \"format\": \"mixed-precision\", "
                  "\"config_groups\": {\"a\": {\"format\": \"int-quantized\", "
                  "\"input_activations\": {\"num_bits\": 8}, " +
                  weights + "}}}")
                     .c_str());
  EXPECT_EQ(config.format, PackedFormat::kIntQuantized);
  EXPECT_TRUE(config.quantizes_activations);
  config = *read(R"({"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"})");
  EXPECT_EQ(config.format, PackedFormat::kAwq);
  EXPECT_EQ(config.group, 128);
  config = *read(R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": true})");
  EXPECT_EQ(config.format, PackedFormat::kGptq);
  EXPECT_EQ(config.bits, 8);
  EXPECT_EQ(config.group, -1);
  EXPECT_TRUE(config.zeros_less_one);
  config = *read(R"({"quant_method": "gptq", "bits": 4, "group_size": 64,
                     "checkpoint_format": "gptq_v2"})");
  EXPECT_FALSE(config.zeros_less_one);
  EXPECT_EQ(ReadQuantizationConfig(nlohmann::json::object())->format, PackedFormat::kNone);
  EXPECT_EQ(ReadQuantizationConfig({{"quantization_config", nullptr}})->format,
            PackedFormat::kNone);
}

TEST(QuantizationConfig, OthersAreNamed) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({"quant_method": "bitsandbytes"})", "quant_method: 'bitsandbytes' is not supported"},
      {R"({"quant_method": 7})", "quant_method: '' is not supported"},
      {R"([])", "must be an object"},
      {R"({"quant_method": "compressed-tensors", "format": "float-quantized"})",
       "format: 'float-quantized' is not supported"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})", "config_groups"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
          {"g": {"weights": {"num_bits": 3, "type": "int"}}}})",
       "config_groups.g.weights.num_bits: 3 is not supported (4 and 8 are)"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
          {"g": {"weights": {"num_bits": 4, "type": "float"}}}})",
       "weights.type"},
      {R"({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups":
          {"g": {"weights": {"num_bits": 8, "strategy": "tensor"}}}})",
       "strategy: 'tensor'"},
      {R"({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups":
          {"g": {"weights": {"num_bits": 8}}}})",
       "format: 'mixed-precision' is not supported"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
          {"g": {"weights": {"num_bits": 8}}}, "transform_config": {"x": 1}})",
       "transform_config"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
           "sparsity_config": {"format": "sparse-24-bitmask"}})",
       "sparsity_config.format"},
      {R"({"quant_method": "awq", "bits": 8, "group_size": 128})",
       "bits: 8 is not supported (4 is)"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"})",
       "version: 'gemv'"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 40})", "group_size: 40"},
      {R"({"quant_method": "awq", "bits": 4})", "group_size: null"},
      {R"({"quant_method": "gptq", "bits": 2, "group_size": 128})", "bits: 2 is not supported"},
      {R"({"quant_method": "gptq", "bits": "4", "group_size": 128})", "bits: \"4\""},
      {R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"})",
       "checkpoint_format: 'marlin'"},
      {R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"x": {"bits": 8}}})",
       "dynamic"}};
  for (const auto& [text, message] : cases) {
    const absl::Status status =
        ReadQuantizationConfig({{"quantization_config", nlohmann::json::parse(text)}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
  }
}

}  // namespace
}  // namespace apb::model
