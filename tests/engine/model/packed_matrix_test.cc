// Goal: published quantized checkpoints keep their weights. Method: quantized_checkpoints.py writes
// small checkpoints in every format, and the same models with the weights that the integers
// represent. Decoded weights must be the same numbers, and logits must agree; if blocks cannot hold
// a format, within int8's rounding. A tensor that does not fit is refused with its name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/match.h"
#include "engine/model/weights.h"
#include "kernels/weight_blocks.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/contiguous_attention.h"

namespace apb::model {
namespace {

namespace fs = std::filesystem;
using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

fs::path Folder() { return std::getenv("APB_QUANTIZED_CHECKPOINTS"); }

std::vector<float> Decoded(const TensorView& view) {
  std::vector<float> all;
  for (int64_t r = 0; r < view.rows(); ++r) {
    const TensorView row = view.Rows(r, r + 1);
    std::vector<float> values(view.shape[1]);
    if (kernels::IsBlockType(view.dtype)) {
      kernels::DecodeBlocks(view.dtype, row.data, view.shape[1], values.data());
    } else {
      std::memcpy(values.data(), row.data, view.shape[1] * 4);
    }
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// The largest difference, relative to the largest magnitude in `want`.
double Difference(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double worst = 0, top = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(double{got[i]} - want[i]));
    top = std::max(top, std::abs(double{want[i]}));
  }
  return worst / top;
}

std::vector<TensorView> Products(const LayerWeights& l) {
  return {l.q_proj, l.k_proj, l.v_proj, l.o_proj, l.gate_proj, l.up_proj, l.down_proj};
}

std::vector<int32_t> Prompt() {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back((i * i * 7 + 3) % 80);
  return tokens;
}

class PackedMatrixTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Weights> Load(const char* kind, Share share = {}, LoadOptions options = {}) {
    auto weights = Weights::Load(Folder() / GetParam() / kind, *backend_, share, options);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return weights.ok() ? *std::move(weights) : nullptr;
  }
  // The portable kernels do not round activations, so that only the weights differ.
  std::unique_ptr<kernels::Backend> backend_ =
      *kernels::CreateCpuBackend({.threads = 2, .force_isa = "portable"});
  std::unique_ptr<kernels::Backend> best_ =
      *kernels::CreateCpuBackend({.threads = 2, .force_isa = ""});
  const json expected_ = json::parse(std::ifstream(Folder() / GetParam() / "expected.json"));
  // A float's rounding; or a bit more than half an int8 step at the largest magnitude.
  const double tolerance_ = expected_["exact"].get<bool>() ? 1e-6 : 0.6 / 127;
};

TEST_P(PackedMatrixTest, WeightsAndLogitsAreThoseOfTheIntegers) {
  const auto quantized = Load("quantized"), plain = Load("plain");
  ASSERT_TRUE(quantized != nullptr && plain != nullptr);
  const bool four = expected_["bits"] == 4;
  for (int l = 0; l < plain->config().layers; ++l) {
    const std::vector<TensorView> got = Products(quantized->layer(l)),
                                  want = Products(plain->layer(l));
    for (size_t i = 0; i < want.size(); ++i) {
      const DType packed = four ? DType::kI4Block : DType::kI8Block;
      EXPECT_TRUE(got[i].dtype == packed || got[i].dtype == DType::kF32) << l << " " << i;
      EXPECT_LE(Difference(Decoded(got[i]), Decoded(want[i])), tolerance_) << l << " " << i;
    }
    EXPECT_TRUE(quantized->layer(l).gate_up_proj.present());
  }
  const LoadReport& report = quantized->load_report();
  const int64_t packed = 14 - expected_["plain"].get<int64_t>();
  EXPECT_EQ(report.products, 15);
  EXPECT_EQ(report.int4_products, four ? packed : 0);
  EXPECT_EQ(report.int8_products, four ? 0 : packed);
  EXPECT_EQ(report.quantized_again, expected_["again"].get<bool>() ? packed : 0);
  EXPECT_EQ(quantized->weight_type(), four ? "int4" : "int8");
  const std::vector<float> logits = *LogitsOf(*plain, *backend_, Prompt());
  EXPECT_GT(*std::max_element(logits.begin(), logits.end()), 0.5f);
  EXPECT_LE(Difference(*LogitsOf(*quantized, *backend_, Prompt()), logits),
            expected_["exact"].get<bool>() ? 2e-4 : 0.1);
  EXPECT_LE(Difference(*LogitsOf(*quantized, *best_, Prompt()), logits), 0.2);
}

// The shares of tensor parallel ranks are parts of the whole.
TEST_P(PackedMatrixTest, SharesHaveTheirRowsAndColumns) {
  const auto whole = Load("quantized");
  ASSERT_TRUE(whole != nullptr);
  for (int index = 0; index < 2; ++index) {
    const auto share = Load("quantized", {index, 2});
    ASSERT_TRUE(share != nullptr);
    for (int l = 0; l < whole->config().layers; ++l) {
      const std::vector<TensorView> got = Products(share->layer(l));
      const std::vector<TensorView> want =
          Products(PartOf(whole->layer(l), share->shape(), whole->config().head_dim, index == 0));
      for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(Decoded(got[i]), Decoded(want[i])) << i;
    }
  }
}

// --quantize also quantizes the weights that the checkpoint has not quantized.
TEST_P(PackedMatrixTest, TheRestCanBeQuantized) {
  const auto published = Load("quantized"),
             all = Load("quantized", {}, {.quantize = DType::kI4Block});
  ASSERT_TRUE(published != nullptr && all != nullptr);
  EXPECT_EQ(all->output().dtype, DType::kI8Block);
  EXPECT_LE(Difference(Decoded(all->output()), Decoded(published->output())), 0.6 / 127);
  EXPECT_EQ(all->load_report().int4_products + all->load_report().int8_products, 15);
  const TensorView up = all->layer(0).up_proj;
  EXPECT_EQ(Decoded(up), Decoded(published->layer(0).up_proj));
}

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  if (std::getenv("APB_QUANTIZED_CHECKPOINTS") == nullptr) return {"no_folder_given"};
  for (const auto& entry : fs::directory_iterator(Folder()))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(Formats, PackedMatrixTest, testing::ValuesIn(Cases()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Loads a copy of a case with a changed config.json or changed tensors.
class BrokenPackedMatrixTest : public testing::Test {
 protected:
  BrokenPackedMatrixTest() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~BrokenPackedMatrixTest() override { fs::remove_all(folder_); }
  std::string ErrorOf(const std::string& of,
                      const std::function<void(json& config, json& tensors)>& change) {
    const fs::path source = Folder() / of / "quantized";
    json config = json::parse(std::ifstream(source / "config.json"));
    std::ifstream file(source / "model.safetensors", std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    json tensors = json::parse(bytes.substr(8, length));
    const std::string data = bytes.substr(8 + length);
    change(config, tensors);
    std::ofstream(folder_ / "config.json") << config;
    const std::string header = tensors.dump();
    length = header.size();
    std::ofstream out(folder_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << data;
    out.close();
    auto backend = *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
    const absl::Status status = Weights::Load(folder_, *backend).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

 private:
  const fs::path folder_ = fs::path(testing::TempDir()) / "broken_packed_matrix_test";
};

TEST_F(BrokenPackedMatrixTest, SaysWhatDoesNotFit) {
  const std::string q = "model.layers.1.self_attn.q_proj.";
  const auto has = [](const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* part : parts) EXPECT_TRUE(absl::StrContains(text, part)) << text;
  };
  // A tensor is renamed instead of left out, because files must not have holes.
  const auto rename = [](json& tensors, const std::string& from, const std::string& to) {
    tensors[to] = tensors[from];
    tensors.erase(from);
  };
  has(ErrorOf("awq_128", [&](json&, json& t) { rename(t, q + "scales", "x"); }),
      {"q_proj.scales", "missing"});
  has(ErrorOf("awq_128", [&](json&, json& t) { rename(t, q + "qweight", "x"); }),
      {"q_proj.weight", "missing"});
  has(ErrorOf("awq_128", [&](json& c, json&) { c["quantization_config"]["group_size"] = 64; }),
      {"scales", "[1, 128]", "[2, 128]"});
  has(ErrorOf("gptq_int8", [&](json& c, json&) { c["quantization_config"]["bits"] = 4; }),
      {"qweight", "[32, 128]", "[16, 128]"});
  has(ErrorOf("pack_int4_128", [&](json&, json& t) { t[q + "weight_scale"]["dtype"] = "I16"; }),
      {"weight_scale", "I16"});
  has(ErrorOf("pack_int4_128", [&](json& c, json&) { c.erase("quantization_config"); }),
      {"q_proj.weight", "missing"});
  has(ErrorOf("int8_channel", [&](json& c, json&) { c.erase("quantization_config"); }),
      {"q_proj.weight", "I8", "quantization_config"});
}

}  // namespace
}  // namespace apb::model
