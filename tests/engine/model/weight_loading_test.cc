// Goal: a backend gets the checkpoint's numbers: those of its share, in the wanted type, and
// tensors that one product can compute side by side. Method: a small Qwen 2 model with retaining
// heads is written. The CPU uses it in the file. The guarded device, whose memory the CPU cannot
// read, gets a copy, which is copied back and compared.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/model/float_convert.h"
#include "engine/model/weights.h"
#include "nlohmann/json.hpp"
#include "tests/engine/device/guarded_backend.h"

namespace apb::model {
namespace {

namespace fs = std::filesystem;
using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

constexpr int64_t kHidden = 16, kHeads = 4, kKvHeads = 2, kDim = 4, kMlp = 24, kVocabulary = 30,
                  kRetaining = 6, kLayers = 2;

struct Named {
  std::string name;
  TensorView view;
};
std::vector<Named> Parts(const LayerWeights& l) {
  return {{"input_norm", l.input_norm}, {"q_proj", l.q_proj},    {"k_proj", l.k_proj},
          {"v_proj", l.v_proj},         {"q_bias", l.q_bias},    {"k_bias", l.k_bias},
          {"v_bias", l.v_bias},         {"o_proj", l.o_proj},    {"post_norm", l.post_norm},
          {"gate_proj", l.gate_proj},   {"up_proj", l.up_proj},  {"down_proj", l.down_proj},
          {"fc1", l.retaining_fc1},     {"fc2", l.retaining_fc2}};
}

class WeightLoadingTest : public testing::Test {
 protected:
  WeightLoadingTest()
      : folder_(fs::path(testing::TempDir()) /
                absl::StrCat("weight_loading_test_",
                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    WriteCheckpoint("float32", [](const std::string&) { return "F32"; });
  }
  ~WeightLoadingTest() override { fs::remove_all(folder_); }

  // Writes the same numbers each time, in the given types. No number occurs twice.
  void WriteCheckpoint(const char* torch_dtype,
                       const std::function<std::string(const std::string&)>& type_of) {
    const json config = {{"architectures", {"Qwen2ForCausalLM"}},
                         {"vocab_size", kVocabulary},
                         {"hidden_size", kHidden},
                         {"intermediate_size", kMlp},
                         {"num_hidden_layers", kLayers},
                         {"num_attention_heads", kHeads},
                         {"num_key_value_heads", kKvHeads},
                         {"head_dim", kDim},
                         {"max_position_embeddings", 64},
                         {"torch_dtype", torch_dtype}};
    std::ofstream(folder_ / "config.json") << config.dump();
    std::map<std::string, std::vector<int64_t>> model = {
        {"model.embed_tokens.weight", {kVocabulary, kHidden}},
        {"model.norm.weight", {kHidden}},
        {"lm_head.weight", {kVocabulary, kHidden}}};
    std::map<std::string, std::vector<int64_t>> heads;
    for (int i = 0; i < kLayers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      const std::string attn = layer + "self_attn.", mlp = layer + "mlp.";
      model[layer + "input_layernorm.weight"] = {kHidden};
      model[layer + "post_attention_layernorm.weight"] = {kHidden};
      model[attn + "q_proj.weight"] = {kHeads * kDim, kHidden};
      model[attn + "q_proj.bias"] = {kHeads * kDim};
      for (const char* name : {"k_proj", "v_proj"}) {
        model[attn + name + ".weight"] = {kKvHeads * kDim, kHidden};
        model[attn + name + ".bias"] = {kKvHeads * kDim};
      }
      model[attn + "o_proj.weight"] = {kHidden, kHeads * kDim};
      model[mlp + "gate_proj.weight"] = model[mlp + "up_proj.weight"] = {kMlp, kHidden};
      model[mlp + "down_proj.weight"] = {kHidden, kMlp};
      heads[attn + "fc1.weight"] = {kRetaining, (kHeads + 2 * kKvHeads) * kDim};
      heads[attn + "fc2.weight"] = {kKvHeads, kRetaining};
    }
    next_ = 0;
    WriteFile("model.safetensors", model, type_of);
    WriteFile("retaining_heads.safetensors", heads, type_of);
  }
  void WriteFile(const std::string& name,
                 const std::map<std::string, std::vector<int64_t>>& tensors,
                 const std::function<std::string(const std::string&)>& type_of) {
    json header = json::object();
    std::string data;
    for (const auto& [tensor, shape] : tensors) {
      int64_t count = 1;
      for (const int64_t extent : shape) count *= extent;
      std::vector<float> numbers(count);
      for (float& x : numbers) x = static_cast<float>(next_++) / 64;
      const std::string type = type_of(tensor);
      const DType dtype = type == "F32" ? DType::kF32 : type == "F16" ? DType::kF16 : DType::kBF16;
      const size_t begin = data.size();
      data.resize(begin + count * SizeOf(dtype));
      ConvertFloats(DType::kF32, numbers.data(), dtype, &data[begin], count);
      header[tensor] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
    }
    std::string text = header.dump();
    while (text.size() % 8 != 0) text += ' ';
    const uint64_t size = text.size();
    fs::remove(folder_ / name);  // an earlier file that is still mapped must not change
    std::ofstream file(folder_ / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), sizeof size);
    file << text << data;
  }

  std::unique_ptr<Weights> Load(kernels::Backend& backend, Share share = {},
                                const LoadOptions& options = {}) {
    auto weights = Weights::Load(folder_, backend, share, options);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return weights.ok() ? *std::move(weights) : nullptr;
  }
  // The numbers of a view in any memory, as floats.
  static std::vector<float> Numbers(kernels::Backend& backend, const TensorView& view) {
    std::vector<float> numbers(view.numel());
    if (numbers.empty()) return numbers;
    std::vector<float> memory(view.numel());  // aligned for all types
    TensorView host = view;
    host.data = memory.data();
    host.stride[0] = view.rank == 1 ? 1 : view.shape[1];
    auto stream = *backend.NewStream();
    backend.Copy(view, host, *stream);
    EXPECT_TRUE(stream->Synchronize().ok());
    ConvertFloats(view.dtype, memory.data(), DType::kF32, numbers.data(), view.numel());
    return numbers;
  }
  static std::vector<float> Rounded(std::vector<float> numbers, DType dtype) {
    std::vector<float> memory(numbers.size());
    const auto count = static_cast<int64_t>(numbers.size());
    ConvertFloats(DType::kF32, numbers.data(), dtype, memory.data(), count);
    ConvertFloats(dtype, memory.data(), DType::kF32, numbers.data(), count);
    return numbers;
  }

  const fs::path folder_;
  int next_ = 0;
  std::unique_ptr<kernels::Backend> cpu_ =
      *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  std::unique_ptr<kernels::Backend> device_ = kernels::CreateGuardedBackend(1 << 20);
};

TEST_F(WeightLoadingTest, ADeviceGetsTheShareAndTheHostSeesTheFile) {
  const auto file = Load(*cpu_);
  ASSERT_NE(file, nullptr);
  for (const int count : {1, 2}) {
    for (int index = 0; index < count; ++index) {
      const auto loaded = Load(*device_, {index, count});
      ASSERT_NE(loaded, nullptr);
      const PartShape& shape = loaded->shape();
      for (int l = 0; l < kLayers; ++l) {
        const LayerWeights& whole = file->layer(l);
        LayerWeights expected = PartOf(whole, shape, kDim, index == 0);
        expected.retaining_fc2 = whole.retaining_fc2.Rows(shape.kv_heads.begin, shape.kv_heads.end);
        const std::vector<Named> parts = Parts(loaded->layer(l)), of_file = Parts(expected);
        for (size_t i = 0; i < parts.size(); ++i) {
          if (parts[i].name == "fc1") continue;
          EXPECT_EQ(Numbers(*device_, parts[i].view), Numbers(*cpu_, of_file[i].view))
              << parts[i].name << " of layer " << l << ", share " << index << " of " << count;
        }
        // fc1 has the columns of q, k and v of the share's heads.
        std::vector<float> columns;
        const std::vector<float> fc1 = Numbers(*cpu_, whole.retaining_fc1);
        for (int64_t row = 0; row < kRetaining; ++row) {
          const auto take = [&](int64_t first_head, const Range& heads) {
            const auto begin =
                fc1.begin() + (row * (kHeads + 2 * kKvHeads) + first_head + heads.begin) * kDim;
            columns.insert(columns.end(), begin, begin + heads.length() * kDim);
          };
          take(0, shape.query_heads);
          take(kHeads, shape.kv_heads);
          take(kHeads + kKvHeads, shape.kv_heads);
        }
        EXPECT_EQ(Numbers(*device_, loaded->layer(l).retaining_fc1), columns);
      }
      EXPECT_EQ(Numbers(*device_, loaded->embedding()), Numbers(*cpu_, file->embedding()));
      EXPECT_EQ(Numbers(*device_, loaded->final_norm()), Numbers(*cpu_, file->final_norm()));
      EXPECT_EQ(Numbers(*device_, loaded->output()),
                Numbers(*cpu_, file->output().Rows(shape.vocabulary.begin, shape.vocabulary.end)));
    }
  }
}

TEST_F(WeightLoadingTest, TypesAreConverted) {
  const std::map<std::string, DType> types = {
      {"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16}};
  const std::map<DType, const char*> names = {
      {DType::kF32, "float32"}, {DType::kBF16, "bfloat16"}, {DType::kF16, "float16"}};
  const auto original = Load(*cpu_);
  for (const auto& [of_matrices, matrix_type] : types) {
    for (const auto& [of_norms, norm_type] : types) {
      const auto is_norm = [](const std::string& name) {
        return name.find("norm") != std::string::npos;
      };
      WriteCheckpoint(names.at(matrix_type), [&](const std::string& name) {
        return is_norm(name) ? of_norms : of_matrices;
      });
      for (kernels::Backend* backend : {cpu_.get(), device_.get()}) {
        const bool host = backend == cpu_.get();
        for (const std::optional<DType> wanted :
             {std::optional<DType>(), {DType::kF32}, {DType::kBF16}, {DType::kF16}}) {
          if (host && wanted == DType::kF16) {
            const auto refused = Weights::Load(folder_, *backend, {}, {.dtype = wanted});
            EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
            continue;
          }
          const auto loaded = Load(*backend, {}, {.dtype = wanted});
          ASSERT_NE(loaded, nullptr);
          const DType expected = wanted                               ? *wanted
                                 : host && matrix_type == DType::kF16 ? DType::kBF16
                                                                      : matrix_type;
          EXPECT_EQ(loaded->config().dtype, expected);
          EXPECT_EQ(loaded->load_report().checkpoint_dtype, matrix_type);
          const int norms = 2 * kLayers + 1, matrices = 12 * kLayers + 2;
          EXPECT_EQ(loaded->load_report().converted_tensors,
                    (norm_type != expected) * norms + (matrix_type != expected) * matrices);
          const std::vector<Named> parts = Parts(loaded->layer(1)),
                                   originals = Parts(original->layer(1));
          for (size_t i = 0; i < parts.size(); ++i) {
            EXPECT_EQ(parts[i].view.dtype, expected);
            EXPECT_EQ(Numbers(*backend, parts[i].view),
                      Rounded(Rounded(Numbers(*cpu_, originals[i].view),
                                      is_norm(parts[i].name) ? norm_type : matrix_type),
                              expected))
                << parts[i].name << " " << of_matrices << " " << of_norms;
          }
        }
      }
    }
  }
}

TEST_F(WeightLoadingTest, ProgressEndsWithAllThatIsCopied) {
  for (kernels::Backend* backend : {cpu_.get(), device_.get()}) {
    LoadProgress last;
    const auto weights = Load(*backend, {}, {.progress = [&](const LoadProgress& p) { last = p; }});
    const LoadReport& report = weights->load_report();
    EXPECT_EQ(last.done_bytes, report.copied_bytes);
    EXPECT_EQ(last.total_bytes, report.copied_bytes);
    EXPECT_EQ(report.copied_bytes + report.mapped_bytes, next_ * int64_t{sizeof(float)});
    EXPECT_EQ(report.copied_bytes == 0, backend == cpu_.get());
  }
}

// Expects that the joined view shows the parts, in order, and nothing else.
void ExpectJoins(const TensorView& joined, std::initializer_list<TensorView> parts) {
  ASSERT_TRUE(joined.present());
  int64_t row = 0;
  for (const TensorView& part : parts) {
    EXPECT_EQ(joined.Rows(row, row + part.rows()).data, part.data);
    EXPECT_EQ(joined.stride[0], part.stride[0]);
    EXPECT_EQ(joined.dtype, part.dtype);
    EXPECT_EQ(joined.shape[1], part.shape[1]);
    row += part.rows();
  }
  EXPECT_EQ(joined.rows(), row);
}

void ExpectPacked(const Weights& weights) {
  for (int i = 0; i < kLayers; ++i) {
    const LayerWeights& l = weights.layer(i);
    ExpectJoins(l.qkv_proj, {l.q_proj, l.k_proj, l.v_proj});
    ExpectJoins(l.gate_up_proj, {l.gate_proj, l.up_proj});
    if (l.q_bias.present()) {
      ExpectJoins(l.qkv_bias, {l.q_bias, l.k_bias, l.v_bias});
    }
    EXPECT_EQ(l.q_bias.present(), l.qkv_bias.present());
    for (const TensorView& view : {l.qkv_proj, l.gate_up_proj, l.o_proj, l.down_proj})
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 256, 0u);
  }
}

TEST_F(WeightLoadingTest, CopiesLieSideBySide) {
  ExpectPacked(*Load(*device_));
  ExpectPacked(*Load(*device_, {0, 2}));
  ExpectPacked(*Load(*device_, {1, 2}));
  ModelConfig config = Load(*cpu_)->config();
  for (const bool bias : {true, false}) {
    config.qkv_bias = bias;
    for (const int count : {1, 2}) {
      ExpectPacked(**Weights::Random(config, 1, kRetaining, *cpu_, {0, count}));
      ExpectPacked(**Weights::Random(config, 1, kRetaining, *device_, {count - 1, count}));
    }
  }
}

TEST_F(WeightLoadingTest, InTheFileOnlyNeighboursJoin) {
  const auto weights = Load(*cpu_);
  const LayerWeights& l = weights->layer(1);
  // Tensors lie in the order of their names: o_proj comes between k and q.
  EXPECT_FALSE(l.qkv_proj.present());
  EXPECT_FALSE(l.qkv_bias.present());
  ExpectJoins(l.gate_up_proj, {l.gate_proj, l.up_proj});
}

TEST_F(WeightLoadingTest, SlicesOfJoinedTensorsDoNotJoin) {
  const auto weights = Load(*device_);
  const PartShape whole = weights->shape();
  const LayerWeights all = PartOf(weights->layer(0), whole, kDim, true);
  ExpectJoins(all.qkv_proj, {all.q_proj, all.k_proj, all.v_proj});
  ExpectJoins(all.gate_up_proj, {all.gate_proj, all.up_proj});
  for (int i = 0; i < 2; ++i) {
    const LayerWeights part = PartOf(weights->layer(0), whole.Part({i, 2}), kDim, i == 0);
    EXPECT_FALSE(part.qkv_proj.present());
    EXPECT_FALSE(part.qkv_bias.present());
    EXPECT_FALSE(part.gate_up_proj.present());
  }
}

TEST_F(WeightLoadingTest, RandomWeightsAreTheSameEverywhere) {
  const ModelConfig config = Load(*cpu_)->config();
  const auto whole = *Weights::Random(config, 7, kRetaining, *cpu_);
  for (const int count : {1, 2}) {
    const auto part = *Weights::Random(config, 7, kRetaining, *device_, {count - 1, count});
    for (int l = 0; l < kLayers; ++l) {
      const LayerWeights expected =
          PartOf(whole->layer(l), part->shape(), kDim, part->share().index == 0);
      const std::vector<Named> parts = Parts(part->layer(l)), of_whole = Parts(expected);
      for (size_t i = 0; i < parts.size(); ++i) {
        if (!of_whole[i].view.present()) continue;  // the retaining head
        EXPECT_EQ(Numbers(*device_, parts[i].view), Numbers(*cpu_, of_whole[i].view))
            << parts[i].name;
      }
    }
    EXPECT_EQ(Numbers(*device_, part->embedding()), Numbers(*cpu_, whole->embedding()));
  }
}

}  // namespace
}  // namespace apb::model
