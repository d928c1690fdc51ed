#include "engine/model/quantization_config.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status_macros.h"

namespace apb::model {
namespace {

using nlohmann::json;

constexpr const char* kMethods =
    "compressed-tensors with format pack-quantized or int-quantized, awq and gptq are; weights of "
    "float types can be quantized at load time with --quantize";

absl::Status Bad(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: quantization_config.", field, ": ", what));
}

const json& Field(const json& object, const char* name) {
  static const json kNull;
  const auto found = object.is_object() ? object.find(name) : object.end();
  return found == object.end() ? kNull : *found;
}

// Absent, null, false or empty.
bool IsUnset(const json& value) {
  return value.is_null() || value == false ||
         ((value.is_object() || value.is_array()) && value.empty());
}

// The string in lower case; empty if the value is not a string.
std::string Text(const json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : "";
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string Shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 100);
}

absl::Status CheckBits(const json& bits, const char* field, bool eight) {
  if (bits == 4 || (eight && bits == 8)) return absl::OkStatus();
  return Bad(field,
             absl::StrCat(Shown(bits), " is not supported (4", eight ? " and 8 are)" : " is)"));
}

absl::StatusOr<PackedFormat> FormatNamed(const std::string& name) {
  if (name == "pack-quantized") return PackedFormat::kPackQuantized;
  if (name == "int-quantized") return PackedFormat::kIntQuantized;
  return Bad("format", absl::StrCat("'", name, "' is not supported (", kMethods, ")"));
}

// One entry of config_groups: the quantization of some layers.
absl::Status ReadGroup(const json& group, const std::string& name, QuantizationConfig& config) {
  const std::string where = absl::StrCat("config_groups.", name, ".weights");
  const json& weights = Field(group, "weights");
  if (!weights.is_object()) return Bad(where, "is missing");
  const json& type = Field(weights, "type");
  if (!type.is_null() && type != "int")
    return Bad(where + ".type", absl::StrCat(Shown(type), " is not supported (int is)"));
  APB_RETURN_IF_ERROR(CheckBits(Field(weights, "num_bits"), (where + ".num_bits").c_str(), true));
  const std::string strategy = Text(Field(weights, "strategy"));
  if (!strategy.empty() && strategy != "group" && strategy != "channel")
    return Bad(where + ".strategy",
               absl::StrCat("'", strategy, "' is not supported (group and channel are)"));
  config.quantizes_activations |= !IsUnset(Field(group, "input_activations"));
  const std::string format = Text(Field(group, "format"));
  if (format.empty()) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(const PackedFormat named, FormatNamed(format));
  if (config.format == PackedFormat::kNone) config.format = named;
  return named == config.format
             ? absl::OkStatus()
             : Bad("config_groups", "groups of several formats are not supported");
}

absl::StatusOr<QuantizationConfig> ReadCompressedTensors(const json& object) {
  QuantizationConfig config;
  const std::string format = Text(Field(object, "format"));
  if (format != "mixed-precision") {  // with mixed-precision, each group names its own format
    APB_ASSIGN_OR_RETURN(config.format, FormatNamed(format));
  }
  const std::string sparsity = Text(Field(Field(object, "sparsity_config"), "format"));
  if (!sparsity.empty() && sparsity != "dense")
    return Bad("sparsity_config.format",
               absl::StrCat("'", sparsity, "' is not supported (dense is)"));
  if (!IsUnset(Field(object, "transform_config")))
    return Bad("transform_config", "transformed weights are not supported");
  const json& groups = Field(object, "config_groups");
  if (!groups.is_object() || groups.empty()) return Bad("config_groups", "is missing");
  for (const auto& [name, group] : groups.items())
    APB_RETURN_IF_ERROR(ReadGroup(group, name, config));
  if (config.format == PackedFormat::kNone) return FormatNamed(format).status();
  return config;
}

absl::StatusOr<int64_t> ReadGroupSize(const json& object) {
  const json& size =
      Field(object, Field(object, "group_size").is_null() ? "q_group_size" : "group_size");
  if (size == -1) return -1;
  if (!size.is_number_unsigned() || size.get<uint64_t>() == 0 || size.get<uint64_t>() > 1 << 22 ||
      size.get<int64_t>() % 32 != 0) {
    return Bad("group_size",
               absl::StrCat(Shown(size), " is not supported (-1 and multiples of 32 are)"));
  }
  return size.get<int64_t>();
}

absl::StatusOr<QuantizationConfig> ReadAwq(const json& object) {
  QuantizationConfig config{.format = PackedFormat::kAwq, .bits = 4};
  const char* bits = Field(object, "bits").is_null() ? "w_bit" : "bits";
  APB_RETURN_IF_ERROR(CheckBits(Field(object, bits), bits, false));
  APB_ASSIGN_OR_RETURN(config.group, ReadGroupSize(object));
  const std::string version = Text(Field(object, "version"));
  if (!version.empty() && version != "gemm")
    return Bad("version", absl::StrCat("'", version, "' is not supported (gemm is)"));
  return config;
}

absl::StatusOr<QuantizationConfig> ReadGptq(const json& object) {
  QuantizationConfig config{.format = PackedFormat::kGptq};
  APB_RETURN_IF_ERROR(CheckBits(Field(object, "bits"), "bits", true));
  config.bits = Field(object, "bits").get<int>();
  APB_ASSIGN_OR_RETURN(config.group, ReadGroupSize(object));
  const std::string format = Text(Field(object, "checkpoint_format"));
  if (!format.empty() && format != "gptq" && format != "gptq_v2")
    return Bad("checkpoint_format",
               absl::StrCat("'", format, "' is not supported (gptq and gptq_v2 are)"));
  config.zeros_less_one = format != "gptq_v2";
  if (!IsUnset(Field(object, "is_marlin_format")))
    return Bad("is_marlin_format", "only false is supported");
  if (!IsUnset(Field(object, "dynamic")))
    return Bad("dynamic",
               "layers that are quantized in another way than the others are not supported");
  return config;
}

}  // namespace

const char* NameOf(PackedFormat format) {
  switch (format) {
    case PackedFormat::kNone:
      break;
    case PackedFormat::kPackQuantized:
      return "pack-quantized";
    case PackedFormat::kIntQuantized:
      return "int-quantized";
    case PackedFormat::kAwq:
      return "awq";
    case PackedFormat::kGptq:
      return "gptq";
  }
  return "none";
}

absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const json& root) {
  const json& object = Field(root, "quantization_config");
  if (object.is_null()) return QuantizationConfig{};
  if (!object.is_object())
    return absl::InvalidArgumentError("config.json: quantization_config: must be an object");
  const std::string method = Text(Field(object, "quant_method"));
  if (method == "compressed-tensors") return ReadCompressedTensors(object);
  if (method == "awq") return ReadAwq(object);
  if (method == "gptq") return ReadGptq(object);
  return Bad("quant_method", absl::StrCat("'", method, "' is not supported (", kMethods, ")"));
}

}  // namespace apb::model
