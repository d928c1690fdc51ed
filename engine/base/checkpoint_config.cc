#include "engine/base/checkpoint_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/fingerprint.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"

namespace apb::base {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxVocabSize = 10'000'000;

// Reads "eos_token_id": one id, a list of ids, or null.
void ReadEosTokenIds(JsonReader& reader, std::vector<int32_t>& ids) {
  const json* value = reader.Find("eos_token_id");
  if (value == nullptr) return;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const int32_t id : reader.IntegersOf("eos_token_id", list)) {
    if (id < 0 || id >= kMaxVocabSize)
      reader.Fail("eos_token_id", absl::StrCat(id, " is no token id"));
    ids.push_back(id);
  }
}

}  // namespace

absl::StatusOr<CheckpointConfig> ParseCheckpointConfig(
    std::string_view config, std::optional<std::string_view> generation_config) {
  CheckpointConfig read;
  APB_ASSIGN_OR_RETURN(read.root, ParseJsonObject(config, "config.json"));
  JsonReader reader(read.root, "config.json: ");
  read.fingerprint = Fingerprint(config);
  read.vocab_size = reader.Integer("vocab_size", 1, kMaxVocabSize);
  read.max_positions = reader.Integer("max_position_embeddings", 1, 1 << 30, 2048);
  // Files from before 2025 call it torch_dtype.
  read.dtype = reader.String("dtype", reader.String("torch_dtype", "bfloat16"));
  ReadEosTokenIds(reader, read.eos_token_ids);
  APB_RETURN_IF_ERROR(reader.status());
  if (generation_config.has_value()) {
    APB_ASSIGN_OR_RETURN(const json generation,
                         ParseJsonObject(*generation_config, "generation_config.json"));
    JsonReader more(generation, "generation_config.json: ");
    ReadEosTokenIds(more, read.eos_token_ids);
    APB_RETURN_IF_ERROR(more.status());
  }
  std::sort(read.eos_token_ids.begin(), read.eos_token_ids.end());
  const auto twice = std::unique(read.eos_token_ids.begin(), read.eos_token_ids.end());
  read.eos_token_ids.erase(twice, read.eos_token_ids.end());
  return read;
}

absl::StatusOr<CheckpointConfig> LoadCheckpointConfig(const std::string& directory) {
  const absl::StatusOr<std::string> config = ReadFile(directory + "/config.json", kMaxConfigBytes);
  if (absl::IsNotFound(config.status())) {
    return absl::NotFoundError(
        absl::StrCat(config.status().message(), " (is this a checkpoint directory?)"));
  }
  APB_RETURN_IF_ERROR(config.status());
  const absl::StatusOr<std::string> generation =
      ReadFile(directory + "/generation_config.json", kMaxConfigBytes);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  std::optional<std::string_view> generation_text;
  if (generation.ok()) generation_text = *generation;
  absl::StatusOr<CheckpointConfig> read = ParseCheckpointConfig(*config, generation_text);
  if (read.ok()) return read;
  return absl::Status(read.status().code(), absl::StrCat(directory, "/", read.status().message()));
}

}  // namespace apb::base
