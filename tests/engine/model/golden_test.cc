// Goal: the decoder gives the logits of transformers (float32) for Llama, Qwen 2.5, Qwen 3 and
// Mistral checkpoints. Method: tests/golden/*: prompt at once, then 32 greedy tokens one by one;
// f32 |difference| <= 1e-3, same tokens; bf16 within 1.5 times what transformers itself deviates
// when it computes in bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/model/decoder.h"
#include "engine/model/safetensors.h"
#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// Plain causal attention over all rows seen so far.
class ContiguousAttention : public attention::LayerAttention {
 public:
  ContiguousAttention(const ModelConfig& config, kernels::Backend& backend)
      : config_(config), backend_(backend), keys_(config.layers), values_(config.layers) {}
  void NextRows(int64_t begin, int64_t count) {
    begin_ = begin;
    positions_.resize(begin + count);
    for (int64_t i = 0; i < begin + count; ++i) positions_[i] = static_cast<int32_t>(i);
  }
  TensorView positions() {
    return TensorView::Contiguous(positions_.data() + begin_, DType::kI32,
                                  {static_cast<int64_t>(positions_.size()) - begin_});
  }
  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(int, const TensorView&, kernels::Stream&) override {
    return absl::InternalError("not wanted");
  }
  Store StoreOf(int) const override { return {}; }
  bool WantsOutput(int) const override { return true; }
  absl::Status Attend(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                      const TensorView& out, kernels::Stream& stream) override {
    const int64_t total = static_cast<int64_t>(positions_.size());
    const auto append = [&](std::vector<std::byte>& store, const TensorView& rows) {
      const size_t row = config_.kv_heads * config_.head_dim * SizeOf(config_.dtype);
      store.resize(total * row);
      TensorView all = TensorView::Contiguous(store.data(), config_.dtype,
                                              {total, config_.kv_heads, config_.head_dim});
      backend_.Copy(rows, all.Rows(begin_, total), stream);
      return all;
    };
    kernels::KeySegment segment{
        .k = append(keys_[layer], k),
        .v = append(values_[layer], v),
        .positions = TensorView::Contiguous(positions_.data(), DType::kI32, {total})};
    backend_.Attention({.q = q,
                        .q_positions = positions(),
                        .keys = {&segment, 1},
                        .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                        .out = out},
                       stream);
    return absl::OkStatus();
  }

 private:
  const ModelConfig& config_;
  kernels::Backend& backend_;
  std::vector<std::vector<std::byte>> keys_, values_;
  std::vector<int32_t> positions_;
  int64_t begin_ = 0;
};

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
