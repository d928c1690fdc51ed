// What server and workers both need of a checkpoint's config.json and generation_config.json. Read
// in one place, so that both take the same files for valid and find the same numbers in them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace apb::base {

struct CheckpointConfig {
  nlohmann::json root;                 // config.json as an object, for those who read more of it
  std::string fingerprint;             // of config.json's bytes: server and workers compare it
  int64_t vocab_size = 0;              // rows of the embedding
  int64_t max_positions = 0;           // tokens of prompt + completion that the model is made for
  std::string dtype;                   // of the weights, e.g. "bfloat16"
  std::vector<int32_t> eos_token_ids;  // end a completion; of both files, ascending, each once
};

// Reads `<directory>/config.json` and, where there is one, generation_config.json. kNotFound
// without the former; kInvalidArgument names the file and the field that is missing, wrong or out
// of range.
absl::StatusOr<CheckpointConfig> LoadCheckpointConfig(const std::string& directory);
// The same of texts.
absl::StatusOr<CheckpointConfig> ParseCheckpointConfig(
    std::string_view config, std::optional<std::string_view> generation_config = std::nullopt);

}  // namespace apb::base
