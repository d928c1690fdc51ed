// The model shapes of the benchmarks, by name.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"

namespace apb::bench {

// The shape of "tiny", "125m", "1b" or "8b" (Llama 3.1), in bf16, with RoPE theta 500000 and untied
// embeddings. kInvalidArgument for another name; the message lists the known ones.
absl::StatusOr<model::ModelConfig> NamedShape(std::string_view name);

}  // namespace apb::bench
