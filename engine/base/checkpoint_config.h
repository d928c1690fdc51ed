// The part of a checkpoint's config.json and generation_config.json that server and workers both
// need. One reader for both, so that they accept the same files and find the same numbers in them.
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
  nlohmann::json root;                 // config.json as an object, for callers that read more of it
  std::string fingerprint;             // of the bytes of config.json; server and workers compare it
  int64_t vocab_size = 0;              // rows of the embedding
  int64_t max_positions = 0;           // prompt + completion tokens that the model is made for
  std::string dtype;                   // of the weights, e.g. "bfloat16"
  std::vector<int32_t> eos_token_ids;  // of both files, ascending, each once; they end a completion
};

// Reads `<directory>/config.json` and, if it exists, generation_config.json. kNotFound without the
// former; kInvalidArgument names the file and the field that is missing, wrong or out of range.
absl::StatusOr<CheckpointConfig> LoadCheckpointConfig(const std::string& directory);
// The same, from the texts of the two files.
absl::StatusOr<CheckpointConfig> ParseCheckpointConfig(
    std::string_view config, std::optional<std::string_view> generation_config = std::nullopt);

}  // namespace apb::base
