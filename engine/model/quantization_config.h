// How the weights of a published checkpoint are quantized: config.json's quantization_config.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::model {

// How a format lays out the weights of a matrix product (packed_matrix.h).
enum class PackedFormat {
  kNone,
  kPackQuantized,  // compressed-tensors: several integers to a word
  kIntQuantized,   // compressed-tensors: int8 as such
  kAwq,            // AutoAWQ, version gemm
  kGptq,           // AutoGPTQ, GPTQModel
};
const char* NameOf(PackedFormat format);

struct QuantizationConfig {
  PackedFormat format = PackedFormat::kNone;
  int bits = 0;       // of AWQ and GPTQ; the tensors of compressed-tensors tell
  int64_t group = 0;  // inputs that share a scale, of AWQ and GPTQ; -1: all of them
  bool zeros_less_one =
      false;  // GPTQ: zeros are stored less one (checkpoint_format gptq, not gptq_v2)
  // Activations were to be quantized too, which is not done here.
  bool quantizes_activations = false;
};

// Of the root of a config.json; kNone where it has no quantization_config. kInvalidArgument names a
// method, a format or a field that is not supported, and what is.
absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const nlohmann::json& root);

}  // namespace apb::model
