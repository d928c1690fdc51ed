// Goal: the fields of a checkpoint's configuration that server and workers read are right or
// refused by name; a damaged generation_config.json is an error. Method: texts and files with one
// thing changed at a time.
#include "engine/base/checkpoint_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace apb::base {
namespace {

using testing::HasSubstr;

TEST(CheckpointConfig, FieldsAndDefaults) {
  auto config = ParseCheckpointConfig(
      R"({"vocab_size": 100, "max_position_embeddings": 512, "torch_dtype": "float16",
          "eos_token_id": [2, 1]})",
      R"({"eos_token_id": 7})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->vocab_size, 100);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_EQ(config->dtype, "float16");
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{1, 2, 7}));
  EXPECT_EQ(config->fingerprint.size(), 16u);
  EXPECT_EQ(config->root["vocab_size"], 100);
  config = ParseCheckpointConfig(
      R"({"vocab_size": 9, "dtype": "float32", "torch_dtype": "float16", "eos_token_id": null})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->max_positions, 2048);
  EXPECT_EQ(config->dtype, "float32");
  EXPECT_TRUE(config->eos_token_ids.empty());
}

TEST(CheckpointConfig, WrongFieldsAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "config.json: is no valid JSON"},
      {"{}", "vocab_size: is missing"},
      {R"({"vocab_size": 0})", "vocab_size: must be in [1, 10000000]"},
      {R"({"vocab_size": 10000001})", "vocab_size"},
      {R"({"vocab_size": 9, "max_position_embeddings": 0})", "max_position_embeddings"},
      {R"({"vocab_size": 9, "dtype": 7})", "dtype: must be a string"},
      {R"({"vocab_size": 9, "eos_token_id": "x"})", "eos_token_id"},
      {R"({"vocab_size": 9, "eos_token_id": [1, -1]})", "eos_token_id: -1 is no token id"}};
  for (const auto& [text, message] : cases) {
    const absl::Status status = ParseCheckpointConfig(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(CheckpointConfig, Files) {
  EXPECT_EQ(LoadCheckpointConfig("/nonexistent").status().code(), absl::StatusCode::kNotFound);
  const std::string folder = testing::TempDir() + "checkpoint_config_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({"vocab_size": 100, "eos_token_id": [1, 2]})";
  EXPECT_EQ(LoadCheckpointConfig(folder)->eos_token_ids, (std::vector<int32_t>{1, 2}));
  std::ofstream(folder + "/generation_config.json") << R"({"eos_token_id": 7})";
  EXPECT_EQ(LoadCheckpointConfig(folder)->eos_token_ids, (std::vector<int32_t>{1, 2, 7}));
  for (const char* bad : {"", "{", "[]", R"({"eos_token_id": 1.5})", R"({"eos_token_id": [-3]})"}) {
    std::ofstream(folder + "/generation_config.json") << bad;
    const auto config = LoadCheckpointConfig(folder);
    ASSERT_FALSE(config.ok()) << bad;
    EXPECT_THAT(std::string(config.status().message()),
                HasSubstr(folder + "/generation_config.json: "));
  }
  std::ofstream(folder + "/config.json") << std::string(2 << 20, ' ');
  EXPECT_EQ(LoadCheckpointConfig(folder).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace apb::base
