// Goal: the decoder gives the logits of transformers (float32) for Llama, Qwen 2.5, Qwen 3 and
// Mistral checkpoints. Method: for each of tests/golden/*, the prompt at once, then 32 greedy
// tokens one by one. In f32, |difference| <= 1e-3, with the same tokens. In bf16, the difference is
// at most 1.5 times that of transformers itself when it computes in bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/model/decoder.h"
#include "engine/model/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/contiguous_attention.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

class Golden : public testing::TestWithParam<std::string> {};

TEST_P(Golden, LogitsAndGreedyTokens) {
  const std::string folder = std::string(APB_SOURCE_DIR) + "/tests/golden/" + GetParam();
  auto backend = *kernels::CreateCpuBackend({.threads = 2, .force_isa = ""});
  auto weights = Weights::Load(folder, *backend);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const ModelConfig& config = (*weights)->config();
  auto decoder = *Decoder::Create(**weights, *backend);
  auto stream = *backend->NewStream();
  const auto golden = nlohmann::json::parse(std::ifstream(folder + "/golden.json"));
  auto expected = SafetensorsFile::Open(folder + "/golden.safetensors");
  ASSERT_TRUE(expected.ok()) << expected.status();
  const auto rows_of = [&](const char* name) {
    return reinterpret_cast<const float*>((*expected)->tensors().at(name).data);
  };
  const double tolerance =
      config.dtype == DType::kF32 ? 1e-3 : 1.5 * golden["bf16_max_deviation"].get<double>();

  ContiguousAttention attention(config, *backend);
  int64_t at = 0;
  const auto forward = [&](const std::vector<int32_t>& tokens) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    std::vector<std::byte> hidden(n * config.hidden_size * SizeOf(config.dtype));
    const TensorView view =
        TensorView::Contiguous(hidden.data(), config.dtype, {n, config.hidden_size});
    std::vector<float> logits(n * config.vocab_size);
    attention.NextRows(at, n);
    at += n;
    EXPECT_TRUE(decoder->Embed(tokens, view, *stream).ok());
    EXPECT_TRUE(
        decoder->RunLayers(0, config.layers, view, attention.positions(), attention, *stream).ok());
    EXPECT_TRUE(
        decoder
            ->Logits(view,
                     TensorView::Contiguous(logits.data(), DType::kF32, {n, config.vocab_size}),
                     *stream)
            .ok());
    EXPECT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
    return logits;
  };
  const auto compare = [&](const std::vector<float>& got, const float* want,
                           const std::string& what) {
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    EXPECT_LE(worst, tolerance) << what;
  };
  std::vector<float> logits = forward(golden["prompt_tokens"].get<std::vector<int32_t>>());
  compare(logits, rows_of("prompt_logits"), "prompt");
  const std::vector<int32_t> greedy = golden["greedy_tokens"].get<std::vector<int32_t>>();
  for (size_t i = 0; i < greedy.size(); ++i) {
    const auto last = logits.end() - config.vocab_size;
    EXPECT_EQ(std::max_element(last, logits.end()) - last, greedy[i]) << "token " << i;
    logits = forward({greedy[i]});
    compare(logits, rows_of("decode_logits") + i * config.vocab_size,
            "decode " + std::to_string(i));
  }
}

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(APB_SOURCE_DIR) + "/tests/golden")) {
    if (entry.is_directory() && std::filesystem::exists(entry.path() / "golden.json"))
      names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace apb::model
