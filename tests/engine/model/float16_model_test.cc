// Goal: a float16 model on a device gives the logits of transformers (float32) up to rounding, from
// the checkpoint to the logits of a prompt and of a decoded token. Method: the golden checkpoints,
// rewritten as F16 (and BF16, to compare), on the emulated CUDA backend; and a random model, whose
// heads the matrix kernels take, against itself in float32. Tolerance: float16 has 8 times less
// rounding error than bfloat16, so its deviation must be less than a fourth of bfloat16's.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "engine/model/decoder.h"
#include "engine/model/safetensors.h"
#include "kernels/cuda/cuda_backend.h"
#include "nlohmann/json.hpp"
#include "tests/reference/naive_ops.h"

namespace apb::model {
namespace {

namespace fs = std::filesystem;
using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

// Plain causal attention in device memory. The prompt attends to its own keys, later tokens to the
// paged cache.
class DeviceAttention : public model::LayerAttention {
 public:
  static constexpr int64_t kBlock = 16;
  DeviceAttention(const ModelConfig& c, kernels::Backend& backend, int64_t rows)
      : config_(c), backend_(backend) {
    std::vector<int32_t> numbers(rows);
    std::iota(numbers.begin(), numbers.end(), 0);
    positions_ =
        *core::Tensor::CopyOf(backend, TensorView::Contiguous(numbers.data(), DType::kI32, {rows}));
    std::vector<int64_t> slots(numbers.begin(), numbers.end());
    slots_ =
        *core::Tensor::CopyOf(backend, TensorView::Contiguous(slots.data(), DType::kI64, {rows}));
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    for (int i = 0; i < 2 * c.layers; ++i) {
      caches_.push_back(
          *core::Tensor::Create(backend, c.dtype, {blocks, c.kv_heads, kBlock, c.head_dim}));
    }
  }
  void NextRows(int64_t begin, int64_t count) {
    begin_ = begin;
    end_ = begin + count;
  }
  TensorView positions() const { return positions_.view().Rows(begin_, end_); }
  bool WantsPreRope(int) const override { return false; }
  absl::Status BeforeRope(int, const TensorView&, kernels::Stream&) override {
    return absl::InternalError("not wanted");
  }
  Store StoreOf(int layer) const override {
    return {.to = {.slots = slots_.view().Rows(begin_, end_),
                   .k_cache = caches_[2 * layer].view(),
                   .v_cache = caches_[2 * layer + 1].view()}};
  }
  bool WantsOutput(int) const override { return true; }
  absl::Status Attend(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                      const TensorView& out, kernels::Stream& stream) override {
    const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
    if (begin_ == 0) {
      const kernels::KeySegment segment{.k = k, .v = v, .positions = positions()};
      backend_.Attention(
          {.q = q, .q_positions = positions(), .keys = {&segment, 1}, .scale = scale, .out = out},
          stream);
      return absl::OkStatus();
    }
    const int32_t* numbers = positions_.view().as<const int32_t>();  // 0, 1, 2, ...: slots, blocks
    const kernels::PagedRows rows{.begin = 0, .count = end_ - begin_};
    const kernels::PagedSequence sequence{
        .block_table = numbers, .slot_positions = numbers, .slot_count = end_, .causal_begin = 0};
    backend_.PagedAttention({.q = q,
                             .q_positions = positions(),
                             .k_cache = caches_[2 * layer].view(),
                             .v_cache = caches_[2 * layer + 1].view(),
                             .rows = {&rows, 1},
                             .sequences = &sequence,
                             .total_slots = end_,
                             .scale = scale,
                             .out = out},
                            stream);
    return absl::OkStatus();
  }

 private:
  const ModelConfig& config_;
  kernels::Backend& backend_;
  core::Tensor positions_, slots_;
  std::vector<core::Tensor> caches_;  // k and v by layer
  int64_t begin_ = 0, end_ = 0;
};

// Logits of all tokens. The last token is decoded, the others are the prompt.
std::vector<float> Logits(const Weights& weights, kernels::Backend& backend,
                          const std::vector<int32_t>& tokens) {
  const ModelConfig& config = weights.config();
  const int64_t rows = static_cast<int64_t>(tokens.size()), vocabulary = config.vocab_size;
  auto decoder = *Decoder::Create(weights, backend);
  auto stream = *backend.NewStream();
  DeviceAttention attention(config, backend, rows);
  const core::Tensor hidden =
      *core::Tensor::Create(backend, config.dtype, {rows, config.hidden_size});
  const core::Tensor logits = *core::Tensor::Create(backend, DType::kF32, {rows, vocabulary});
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, rows - 1}, {rows - 1, rows}}) {
    const TensorView part = hidden.view().Rows(begin, end);
    attention.NextRows(begin, end - begin);
    EXPECT_TRUE(decoder->Embed({tokens.data() + begin, tokens.data() + end}, part, *stream).ok());
    EXPECT_TRUE(
        decoder->RunLayers(0, config.layers, part, attention.positions(), attention, *stream).ok());
    EXPECT_TRUE(decoder->Logits(part, logits.view().Rows(begin, end), *stream).ok());
  }
  std::vector<float> values(rows * vocabulary);
  backend.Copy(logits.view(),
               TensorView::Contiguous(values.data(), DType::kF32, {rows, vocabulary}), *stream);
  EXPECT_TRUE(stream->Synchronize().ok()) << stream->Synchronize();
  return values;
}

double Deviation(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    worst = difference <= worst ? worst : difference;  // keeps a NaN
    if (std::isnan(difference)) return INFINITY;
  }
  return worst;
}

// Writes a golden float32 checkpoint, rounded to another type.
void WriteRounded(const std::string& from, const fs::path& to, DType dtype) {
  fs::remove_all(to);
  fs::create_directories(to);
  json config = json::parse(std::ifstream(from + "/config.json"));
  config["torch_dtype"] = TorchName(dtype);
  std::ofstream(to / "config.json") << config.dump();
  auto file = *SafetensorsFile::Open(from + "/model.safetensors");
  json header;
  std::string data;
  for (const auto& [name, entry] : file->tensors()) {
    const size_t begin = data.size();
    for (size_t i = 0; i < entry.size_bytes; i += 4) {
      float x;
      std::memcpy(&x, entry.data + i, 4);
      const uint16_t bits =
          dtype == DType::kF16 ? reference::FloatToFloat16(x) : reference::FloatToBFloat16(x);
      data.append(reinterpret_cast<const char*>(&bits), 2);
    }
    header[name] = {{"dtype", dtype == DType::kF16 ? "F16" : "BF16"},
                    {"shape", entry.shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t size = text.size();
  std::ofstream(to / "model.safetensors", std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&size), 8) << text << data;
}

TEST(Float16Model, CheckpointGivesTheLogitsOfTransformers) {
  auto backend = *kernels::CreateCudaBackend(0);
  const fs::path folder = fs::path(testing::TempDir()) / "float16_model_test";
  for (const char* name : {"llama", "qwen3", "qwen2"}) {
    const std::string golden = std::string(APB_SOURCE_DIR) + "/tests/golden/" + name;
    const json text = json::parse(std::ifstream(golden + "/golden.json"));
    std::vector<int32_t> tokens = text["prompt_tokens"].get<std::vector<int32_t>>();
    tokens.push_back(text["greedy_tokens"][0].get<int32_t>());
    auto expected = *SafetensorsFile::Open(golden + "/golden.safetensors");
    std::vector<float> want;
    for (const char* part : {"prompt_logits", "decode_logits"}) {
      const SafetensorsEntry& entry = expected->tensors().at(part);
      const float* values = reinterpret_cast<const float*>(entry.data);
      const int64_t rows = want.empty() ? entry.shape[0] : 1;
      want.insert(want.end(), values, values + rows * entry.shape[1]);
    }
    double deviation[2];
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      WriteRounded(golden, folder, dtype);
      auto weights = Weights::Load(folder, *backend);
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_EQ((*weights)->config().dtype, dtype);
      EXPECT_EQ((*weights)->output().dtype, dtype);
      deviation[dtype == DType::kBF16] = Deviation(Logits(**weights, *backend, tokens), want);
    }
    EXPECT_LT(deviation[0], deviation[1] / 4) << name;
    RecordProperty(std::string(name) + "_f16", std::to_string(deviation[0]));
    RecordProperty(std::string(name) + "_bf16", std::to_string(deviation[1]));
  }
  fs::remove_all(folder);
}

TEST(Float16Model, RandomModelOnTheMatrixKernels) {
  auto backend = *kernels::CreateCudaBackend(0);
  ModelConfig config;
  config.vocab_size = 101;
  config.hidden_size = 128;
  config.mlp_size = 192;
  config.layers = 2;
  config.query_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.qk_norm = true;
  config.rms_norm_epsilon = 1e-5;
  std::vector<int32_t> tokens(140);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 101);
  const auto logits = [&](DType dtype) {
    config.dtype = dtype;
    auto weights = *Weights::Random(config, 5, 0, *backend);
    return Logits(*weights, *backend, tokens);
  };
  const std::vector<float> want = logits(DType::kF32);
  const double f16 = Deviation(logits(DType::kF16), want),
               bf16 = Deviation(logits(DType::kBF16), want);
  EXPECT_GT(f16, 0);
  EXPECT_LT(f16, bf16 / 4);
  RecordProperty("f16", std::to_string(f16));
  RecordProperty("bf16", std::to_string(bf16));
}

}  // namespace
}  // namespace apb::model
