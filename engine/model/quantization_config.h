// The quantization of a published checkpoint's weights: config.json's quantization_config.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::model {

// The layout of a matrix product's weights (packed_matrix.h).
enum class PackedFormat {
  kNone,
  kPackQuantized,  // compressed-tensors: several integers to a word
  kIntQuantized,   // compressed-tensors: plain int8
  kAwq,            // AutoAWQ, version gemm
  kGptq,           // AutoGPTQ, GPTQModel
};
const char* NameOf(PackedFormat format);

struct QuantizationConfig {
  PackedFormat format = PackedFormat::kNone;
  // Of AWQ and GPTQ only. With compressed-tensors, the shapes of the tensors determine both.
  int bits = 0;
  int64_t group = 0;  // number of inputs that share a scale; -1: all inputs
  // GPTQ: the file stores each zero minus one (checkpoint_format gptq, not gptq_v2).
  bool zeros_less_one = false;
  // The checkpoint asks for quantized activations too; they are not quantized here.
  bool quantizes_activations = false;
};

// Reads it from the root of a config.json. kNone if there is no quantization_config.
// kInvalidArgument names the method, format or field that is not supported, and those that are.
absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const nlohmann::json& root);

}  // namespace apb::model
