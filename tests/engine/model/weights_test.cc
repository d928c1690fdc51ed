// Goal: a checkpoint that does not match its config.json is refused, and the message names the file
// or the tensor; a hostile index does not leave the directory. Method: a tiny checkpoint is written
// with one thing changed at a time, and loaded.
#include "engine/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

struct Entry {
  std::string dtype = "F32";
  std::vector<int64_t> shape;
};
using Entries = std::map<std::string, Entry>;

constexpr int kLayers = 2;

json Config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 11},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", kLayers},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"max_position_embeddings", 64},
          {"torch_dtype", "float32"}};
}

Entries Model() {
  Entries all = {{"model.embed_tokens.weight", {.shape = {11, 8}}},
                 {"model.norm.weight", {.shape = {8}}},
                 {"lm_head.weight", {.shape = {11, 8}}}};
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    all[layer + "input_layernorm.weight"].shape = {8};
    all[layer + "post_attention_layernorm.weight"].shape = {8};
    all[layer + "self_attn.q_proj.weight"].shape = {8, 8};
    all[layer + "self_attn.k_proj.weight"].shape = {4, 8};
    all[layer + "self_attn.v_proj.weight"].shape = {4, 8};
    all[layer + "self_attn.o_proj.weight"].shape = {8, 8};
    all[layer + "mlp.gate_proj.weight"].shape = {12, 8};
    all[layer + "mlp.up_proj.weight"].shape = {12, 8};
    all[layer + "mlp.down_proj.weight"].shape = {8, 12};
  }
  return all;
}

Entries Heads(int64_t width, int layers = kLayers) {
  Entries all;
  for (int i = 0; i < layers; ++i) {
    const std::string attention = absl::StrCat("model.layers.", i, ".self_attn.");
    all[attention + "fc1.weight"].shape = {width, 16};
    all[attention + "fc2.weight"].shape = {1, width};
  }
  return all;
}

class WeightsTest : public testing::Test {
 protected:
  WeightsTest()
      : folder_(fs::path(testing::TempDir()) /
                absl::StrCat("weights_test_",
                             testing::UnitTest::GetInstance()->current_test_info()->name())),
        backend_(*kernels::CreateCpuBackend({.threads = 1, .force_isa = ""})) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    Write("config.json", Config().dump());
  }
  ~WeightsTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  // `padding` shifts the data, so that tensors are not aligned.
  void WriteTensors(const std::string& name, const Entries& entries, json metadata = {},
                    int padding = 0) {
    json header = json::object();
    if (!metadata.is_null()) header["__metadata__"] = metadata;
    int64_t at = 0;
    for (const auto& [tensor, entry] : entries) {
      int64_t bytes = entry.dtype == "F32" ? 4 : 2;
      for (const int64_t extent : entry.shape) bytes *= extent;
      header[tensor] = {
          {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {at, at + bytes}}};
      at += bytes;
    }
    std::string text = header.dump();
    while (text.size() % 8 != static_cast<size_t>(padding)) text += ' ';
    const uint64_t size = text.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    std::string data(at, '\0');
    for (int64_t i = 0; i + 4 <= at; i += 4) {
      const float x = static_cast<float>(i / 4);
      std::memcpy(&data[i], &x, 4);
    }
    Write(name, bytes + text + data);
  }
  absl::Status Load() { return Weights::Load(folder_, *backend_).status(); }
  void ExpectRefused(const char* message) {
    const absl::Status status = Load();
    EXPECT_FALSE(status.ok()) << "expected: " << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  const fs::path folder_;
  std::unique_ptr<kernels::Backend> backend_;
};

TEST_F(WeightsTest, ReadsOneFileAlsoUnaligned) {
  for (const int padding : {0, 1, 2}) {
    WriteTensors("model.safetensors", Model(), {}, padding);
    auto weights = Weights::Load(folder_, *backend_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_FALSE((*weights)->has_retaining_heads());
    // The first tensor by name is lm_head, with the 88 numbers 0, 1, 2, ...
    EXPECT_EQ((*weights)->output().as<float>()[87], 87.0f);
    EXPECT_EQ((*weights)->embedding().as<float>()[0], 88.0f);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*weights)->output().data) % 4, 0u);
  }
}

TEST_F(WeightsTest, RefusesWhatConfigDoesNotSay) {
  ExpectRefused("neither model.safetensors nor");
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  Entries entries = Model();
  entries.erase(name);
  WriteTensors("model.safetensors", entries);
  ExpectRefused("k_proj.weight' is missing");
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{8, 4}, {32}, {4, 8, 1}, {0, 8}, {5, 8}}) {
    entries[name] = {.shape = shape};
    WriteTensors("model.safetensors", entries);
    ExpectRefused("k_proj.weight' has shape");
  }
  entries[name] = {.dtype = "I16", .shape = {4, 8}};
  WriteTensors("model.safetensors", entries);
  ExpectRefused("k_proj.weight' is I16; weights are F32, BF16 or F16");
  // A config.json with larger sizes than the checkpoint's, up to the largest that are allowed.
  WriteTensors("model.safetensors", Model());
  ASSERT_TRUE(Load().ok());
  for (const auto& [field, value] : std::map<std::string, int64_t>{{"num_hidden_layers", 1000},
                                                                   {"vocab_size", 10'000'000},
                                                                   {"intermediate_size", 1 << 22},
                                                                   {"num_attention_heads", 4}}) {
    json config = Config();
    config[field] = value;
    Write("config.json", config.dump());
    EXPECT_EQ(Load().code(), absl::StatusCode::kInvalidArgument) << field;
  }
}

TEST_F(WeightsTest, RefusesTruncatedFiles) {
  WriteTensors("model.safetensors", Model());
  WriteTensors("retaining_heads.safetensors", Heads(6));
  ASSERT_TRUE(Load().ok()) << Load();
  for (const char* name : {"model.safetensors", "retaining_heads.safetensors"}) {
    const auto size = static_cast<int64_t>(fs::file_size(folder_ / name));
    for (const int64_t left : {size - 1, size / 2, int64_t{100}, int64_t{7}, int64_t{0}}) {
      fs::resize_file(folder_ / name, left);
      ExpectRefused(name);
    }
    WriteTensors("model.safetensors", Model());
  }
  fs::remove(folder_ / "retaining_heads.safetensors");
  fs::remove(folder_ / "model.safetensors");
  fs::create_directory(folder_ / "model.safetensors");
  EXPECT_FALSE(Load().ok());
}

TEST_F(WeightsTest, Shards) {
  Entries first = Model(), second;
  second.insert(first.extract("model.norm.weight"));
  WriteTensors("a.safetensors", first);
  WriteTensors("b.safetensors", second);
  json map = json::object();
  for (const auto& [name, entry] : first) map[name] = "a.safetensors";
  map["model.norm.weight"] = "b.safetensors";
  const auto write_index = [&](const json& weight_map) {
    Write("model.safetensors.index.json", json{{"weight_map", weight_map}}.dump());
  };
  write_index(map);
  ASSERT_TRUE(Load().ok()) << Load();

  json wrong = map;
  wrong["model.norm.weight"] = "c.safetensors";
  write_index(wrong);
  ExpectRefused("c.safetensors");
  wrong["model.norm.weight"] = "a.safetensors";  // a file that does not have the tensor
  write_index(wrong);
  ExpectRefused("model.norm.weight");
  wrong["model.norm.weight"] = 7;
  write_index(wrong);
  ExpectRefused("names no file");
  for (const char* path : {"../b.safetensors", "/etc/passwd", "", "x/../b.safetensors"}) {
    wrong["model.norm.weight"] = path;
    write_index(wrong);
    ExpectRefused("leaves the checkpoint's directory");
  }
  write_index(json::array());
  ExpectRefused("weight_map");
  Write("model.safetensors.index.json", "{\"weight_map\": {");
  ExpectRefused("is no valid JSON");
  Write("model.safetensors.index.json", std::string(100, '[') + std::string(100, ']'));
  ExpectRefused("nested deeper");
  // The same tensor in two files.
  second["lm_head.weight"].shape = {11, 8};
  WriteTensors("b.safetensors", second);
  write_index(map);
  ExpectRefused("is also in another file");
}

TEST_F(WeightsTest, RetainingHeadsBelongToTheModel) {
  WriteTensors("model.safetensors", Model());
  const char* kFile = "retaining_heads.safetensors";
  WriteTensors(kFile, Heads(6), {{"activation", "silu"}});
  auto weights = Weights::Load(folder_, *backend_);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE((*weights)->has_retaining_heads());
  EXPECT_EQ((*weights)->layer(1).retaining_fc1.shape[0], 6);

  WriteTensors(kFile, Heads(6), {{"activation", "gelu"}});
  ExpectRefused("gelu");
  WriteTensors(kFile, Heads(6, kLayers + 1));
  ExpectRefused("has 6 tensors");
  WriteTensors(kFile, Heads(6, kLayers - 1));
  ExpectRefused("has 2 tensors");
  Entries heads = Heads(6);
  heads["model.layers.1.self_attn.fc2.weight"].shape = {1, 5};
  WriteTensors(kFile, heads);
  ExpectRefused("fc1 gives 6 features, fc2 takes 5");
  heads["model.layers.1.self_attn.fc2.weight"].shape = {2, 6};
  WriteTensors(kFile, heads);
  ExpectRefused("fc2.weight' has shape");
  heads = Heads(6);
  heads["model.layers.1.self_attn.fc1.weight"].shape = {6, 15};
  WriteTensors(kFile, heads);
  ExpectRefused("fc1.weight' has shape");
  WriteTensors(kFile, Heads(0));
  ExpectRefused("fc1 gives 0 features");
}

}  // namespace
}  // namespace apb::model
