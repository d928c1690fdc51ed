// Model shapes that the benchmarks know by name.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"

namespace apb::bench {

// "tiny", "125m", "1b", "8b" (Llama 3.1); kInvalidArgument names the known ones. bf16, RoPE theta
// 500000, untied.
absl::StatusOr<model::ModelConfig> NamedShape(std::string_view name);

}  // namespace apb::bench
