// Goal: --quantize quantizes the weights of all products and nothing else, with small errors;
// shares are quantized like the whole; weights that cannot be quantized are reported. Method:
// random and golden models, loaded with and without --quantize.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "absl/strings/match.h"
#include "engine/model/decoder.h"
#include "engine/model/weights.h"
#include "kernels/weight_blocks.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/engine/model/contiguous_attention.h"
#include "tests/reference/naive_ops.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using reference::ToDoubles;

std::vector<TensorView> Products(const LayerWeights& l) {
  return {l.q_proj, l.k_proj, l.v_proj, l.o_proj, l.gate_proj, l.up_proj, l.down_proj};
}

ModelConfig Config() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 70;
  c.hidden_size = 64;
  c.mlp_size = 256;
  c.layers = 2;
  c.query_heads = 4;
  c.kv_heads = 2;
  c.head_dim = 32;
  c.max_positions = 256;
  c.dtype = DType::kF32;
  c.tied_embeddings = true;
  return c;
}

class QuantizeTest : public testing::Test {
 protected:
  std::unique_ptr<Weights> Random(const ModelConfig& config, std::optional<DType> quantize,
                                  Share share = {}) {
    return *Weights::Random(config, 5, 8, *backend_, share, quantize);
  }
  // The portable kernels do not round activations, so that only the weights differ.
  std::unique_ptr<kernels::Backend> backend_ =
      *kernels::CreateCpuBackend({.threads = 2, .force_isa = "portable"});
  std::unique_ptr<kernels::Backend> best_ =
      *kernels::CreateCpuBackend({.threads = 2, .force_isa = ""});
};

double RelativeError(const TensorView& got, const TensorView& want) {
  const std::vector<double> a = ToDoubles(got), b = ToDoubles(want);
  double error = 0, all = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    all += b[i] * b[i];
  }
  return std::sqrt(error / all);
}

TEST_F(QuantizeTest, ProductsAndNothingElse) {
  const auto plain = Random(Config(), std::nullopt);
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    const auto quantized = Random(Config(), type);
    // For normal numbers, an int4 step is a 16th of about four deviations, an int8 step a 127th of
    // about two.
    const double most = type == DType::kI4Block ? 0.08 : 0.0065;
    for (int l = 0; l < 2; ++l) {
      const std::vector<TensorView> got = Products(quantized->layer(l)),
                                    want = Products(plain->layer(l));
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(got[i].dtype, type);
        EXPECT_LT(RelativeError(got[i], want[i]), most);
      }
      EXPECT_TRUE(quantized->layer(l).qkv_proj.present());
      EXPECT_TRUE(quantized->layer(l).gate_up_proj.present());
      EXPECT_EQ(ToDoubles(quantized->layer(l).input_norm), ToDoubles(plain->layer(l).input_norm));
      EXPECT_EQ(ToDoubles(quantized->layer(l).retaining_fc1),
                ToDoubles(plain->layer(l).retaining_fc1));
    }
    EXPECT_EQ(ToDoubles(quantized->embedding()), ToDoubles(plain->embedding()));
    EXPECT_EQ(quantized->output().dtype, DType::kI8Block);
    EXPECT_LT(RelativeError(quantized->output(), plain->output()), 0.0065);
    const LoadReport& report = quantized->load_report();
    EXPECT_EQ(report.products, 15);
    EXPECT_EQ(report.int4_products, type == DType::kI4Block ? 14 : 0);
    EXPECT_EQ(report.int8_products, type == DType::kI4Block ? 1 : 15);
    EXPECT_TRUE(report.unquantized.empty());
  }
}

TEST_F(QuantizeTest, LogitsAreThoseOfTheDecodedWeights) {
  const std::vector<int32_t> tokens = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7};
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    const auto quantized = Random(Config(), type), plain = Random(Config(), std::nullopt);
    // The plain model gets the decoded numbers of the quantized one, in its own memory.
    const auto put = [](const TensorView& from, const TensorView& to) {
      for (int64_t r = 0; r < from.rows(); ++r)
        kernels::DecodeBlocks(from.dtype, from.Rows(r, r + 1).data, from.shape[1],
                              to.Rows(r, r + 1).as<float>());
    };
    for (int l = 0; l < 2; ++l) {
      const std::vector<TensorView> from = Products(quantized->layer(l)),
                                    to = Products(plain->layer(l));
      for (size_t i = 0; i < to.size(); ++i) put(from[i], to[i]);
    }
    const std::vector<float> got = *LogitsOf(*quantized, *backend_, tokens);
    // The plain model's output projection is its embedding's memory. So the tokens are embedded and
    // run first, and only then the output projection is decoded into that memory.
    auto decoder = *Decoder::Create(*plain, *backend_);
    auto stream = *backend_->NewStream();
    ContiguousAttention attention(plain->config(), *backend_);
    const auto rows = static_cast<int64_t>(tokens.size());
    attention.NextRows(0, rows);
    std::vector<float> hidden(rows * 64), want(rows * 70);
    const TensorView view = TensorView::Contiguous(hidden.data(), DType::kF32, {rows, 64});
    ASSERT_TRUE(decoder->Embed(tokens, view, *stream).ok());
    ASSERT_TRUE(decoder->RunLayers(0, 2, view, attention.positions(), attention, *stream).ok());
    put(quantized->output(), plain->output());
    ASSERT_TRUE(
        decoder->Logits(view, TensorView::Contiguous(want.data(), DType::kF32, {rows, 70}), *stream)
            .ok());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-3) << i;
    const std::vector<float> rounded = *LogitsOf(*quantized, *best_, tokens);
    double error = 0, all = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      error += (rounded[i] - want[i]) * (rounded[i] - want[i]);
      all += want[i] * want[i];
    }
    EXPECT_LE(std::sqrt(error), 0.02 * std::sqrt(all));
  }
}

TEST_F(QuantizeTest, SharesAreQuantizedAsTheWhole) {
  const auto whole = Random(Config(), DType::kI4Block);
  for (int index = 0; index < 2; ++index) {
    const auto share = Random(Config(), DType::kI4Block, {index, 2});
    const LayerWeights part = PartOf(whole->layer(1), share->shape(), 32, index == 0);
    const std::vector<TensorView> got = Products(share->layer(1)), want = Products(part);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(ToDoubles(got[i]), ToDoubles(want[i])) << i;
    const Range rows = share->shape().vocabulary;
    EXPECT_EQ(ToDoubles(share->output()), ToDoubles(whole->output().Rows(rows.begin, rows.end)));
  }
}

TEST_F(QuantizeTest, WhatHasNoWholeBlocksStays) {
  ModelConfig config = Config();
  config.mlp_size = 80;
  const auto quantized = Random(config, DType::kI4Block);
  EXPECT_EQ(quantized->layer(0).down_proj.dtype, DType::kF32);
  EXPECT_EQ(quantized->layer(0).up_proj.dtype, DType::kI4Block);
  ASSERT_EQ(quantized->load_report().unquantized.size(), 2u);
  EXPECT_EQ(quantized->load_report().unquantized[0],
            "model.layers.0.mlp.down_proj.weight has 80 inputs");
  EXPECT_TRUE(LogitsOf(*quantized, *backend_, {1, 2, 3}).ok());
}

TEST_F(QuantizeTest, CheckpointsAreReadAndDevicesRefuse) {
  const std::string folder = std::string(APB_SOURCE_DIR) + "/tests/golden/";
  for (const char* name : {"llama_bf16", "llama_tied_three_layers", "qwen3"}) {
    const auto plain = *Weights::Load(folder + name, *backend_);
    const auto quantized =
        *Weights::Load(folder + name, *backend_, {}, {.quantize = DType::kI8Block, .threads = 6});
    for (size_t i = 0; i < 7; ++i) {
      EXPECT_LT(RelativeError(Products(quantized->layer(0))[i], Products(plain->layer(0))[i]), 0.01)
          << name;
    }
    EXPECT_LT(RelativeError(quantized->output(), plain->output()), 0.01);
    EXPECT_EQ(ToDoubles(quantized->embedding()), ToDoubles(plain->embedding()));
    EXPECT_GT(quantized->load_report().mapped_bytes, 0);
  }
  const auto device = kernels::CreateGuardedBackend(1 << 22);
  const absl::Status refused =
      Weights::Load(folder + "llama", *device, {}, {.quantize = DType::kI8Block}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(refused.message(), "--device cpu")) << refused;
}

}  // namespace
}  // namespace apb::model
