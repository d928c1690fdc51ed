// Goal: a model gives the same logits on a GPU as on the CPU. Method: random models with the
// families' features (biases, norms of q and k, grouped heads of 64, 80 and 128, tied embeddings)
// run the same conversation on both: prefill of a document by a strategy, query tokens, decode
// through the paged cache. Built twice: for a GPU, where run.sh runs it, and for the emulator
// (tests/kernels/cuda), where CTest runs the small cases.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/comm/local_communicator.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "engine/executor/token_batch.h"
#include "kernels/cuda/cuda_backend.h"

namespace apb::context_parallel {
namespace {

using kernels::Backend;
using kernels::DType;
using kernels::TensorView;

constexpr int64_t kRetainingWidth = 40, kQuery = 7, kDecoded = 3;

void Check(const absl::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}
template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

model::ModelConfig BaseConfig() {
  model::ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 307;
  c.hidden_size = 192;
  c.mlp_size = 320;
  c.layers = 2;
  c.query_heads = 4;
  c.kv_heads = 2;
  c.head_dim = 64;
  c.max_positions = 1 << 16;
  c.rms_norm_epsilon = 1e-5;
  return c;
}

struct Family {
  const char* name;
  model::ModelConfig config;
};

std::vector<Family> Families() {
  Family llama{"llama", BaseConfig()}, biases{"biases_tied", BaseConfig()},
      norms{"qk_norm", BaseConfig()}, odd{"heads_of_80", BaseConfig()};
  llama.config.rope = {.type = model::RopeType::kLlama3,
                       .theta = 500000,
                       .factor = 8,
                       .original_max_positions = 8192};
  biases.config.query_heads = 6;
  biases.config.kv_heads = 1;
  biases.config.head_dim = 128;
  biases.config.qkv_bias = biases.config.output_bias = true;
  biases.config.tied_embeddings = true;
  norms.config.qk_norm = true;
  norms.config.head_dim = 128;  // so that heads * d is not the hidden size
  norms.config.kv_heads = 4;    // one KV head for each query head
  odd.config.head_dim = 80;
  return {llama, biases, norms, odd};
}

struct Prompt {
  std::string strategy, compressor;
  int64_t document = 0;
  bool pass_everything = false;
};

// One rank that plays all hosts, on one backend.
class Side {
 public:
  Side(const model::ModelConfig& config, std::unique_ptr<Backend> backend, int64_t tokens)
      : config_(config), backend_(std::move(backend)) {
    stream_ = Check(backend_->NewStream());
    weights_ = Check(model::Weights::Random(config, 11, kRetainingWidth, *backend_));
    decoder_ = Check(model::Decoder::Create(*weights_, *backend_));
    constexpr int64_t kBlock = 16;
    cache_ = Check(cache::PagedKvCache::Create({.layers = config.layers,
                                                .kv_heads = config.kv_heads,
                                                .head_dim = config.head_dim,
                                                .block_size = kBlock,
                                                .block_count = tokens / kBlock + 2,
                                                .dtype = config.dtype},
                                               *backend_));
    rows_ = std::make_unique<executor::TokenBatchAttention>(
        *cache_, *backend_, *group_[0], 1.0f / std::sqrt(static_cast<float>(config.head_dim)));
  }

  // Logits of the query's tokens and of some decode steps with given tokens, [tokens, V].
  std::vector<float> Run(const Prompt& prompt) {
    const int64_t n = prompt.document;
    std::vector<int32_t> tokens(n + kQuery + kDecoded);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>((i * i * 31 + i * 7 + 5) % config_.vocab_size);
    const std::span<const int32_t> all(tokens);
    cache::SequenceKv kv;
    Prefill(prompt, all.first(n), all.subspan(n, kQuery), kv);
    const int64_t document_slots = kv.slot_count();
    std::vector<float> logits;
    const auto run = [&](int64_t begin, int64_t count) {
      RunSpans({.kv = &kv, .document_slots = document_slots, .position = begin, .count = count},
               all.subspan(begin, count), logits);
    };
    run(n, kQuery);
    for (int64_t i = 0; i < kDecoded; ++i) run(n + kQuery + i, 1);
    cache_->Release(kv);
    return logits;
  }

 private:
  void Prefill(const Prompt& prompt, std::span<const int32_t> document,
               std::span<const int32_t> query, cache::SequenceKv& kv) {
    StrategyOptions options{.hosts = prompt.strategy == "full" ? 1 : 3};
    if (prompt.pass_everything) options.passing_length = prompt.document;
    auto plan = Check(MakeShardPlan(prompt.strategy,
                                    {.document_length = prompt.document,
                                     .query_length = kQuery,
                                     .embedded_query_length = kQuery},
                                    options));
    auto prefill = Check(executor::DocumentPrefill::Start({.decoder = *decoder_,
                                                           .weights = *weights_,
                                                           .cache = *cache_,
                                                           .backend = *backend_,
                                                           .communicator = *group_[0]},
                                                          {{.plan = std::move(plan),
                                                            .tokens = document,
                                                            .embedded_query = query,
                                                            .compressor = prompt.compressor,
                                                            .kv = &kv}},
                                                          *stream_));
    for (int l = 0; l < config_.layers; ++l) Check(prefill->RunLayers(l, l + 1, *stream_));
    Check(stream_->Synchronize());
  }

  void RunSpans(const executor::BatchTokens& rows, std::span<const int32_t> tokens,
                std::vector<float>& logits) {
    core::Tensor hidden =
        Check(core::Tensor::Create(*backend_, config_.dtype, {rows.count, config_.hidden_size}));
    core::Tensor out =
        Check(core::Tensor::Create(*backend_, DType::kF32, {rows.count, config_.vocab_size}));
    Check(rows_->Prepare({rows}, *stream_));
    Check(decoder_->Embed(tokens, hidden.view(), *stream_));
    Check(decoder_->RunLayers(0, config_.layers, hidden.view(), rows_->positions(), *rows_,
                              *stream_));
    Check(decoder_->Logits(hidden.view(), out.view(), *stream_));
    logits.resize(logits.size() + out.view().numel());
    backend_->Copy(out.view(),
                   TensorView::Contiguous(logits.data() + logits.size() - out.view().numel(),
                                          DType::kF32, {rows.count, config_.vocab_size}),
                   *stream_);
    Check(stream_->Synchronize());
  }

  const model::ModelConfig config_;
  const std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<comm::Communicator>> group_ =
      comm::CreateLocalGroup(1, absl::Minutes(1));
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<cache::PagedKvCache> cache_;
  std::unique_ptr<executor::TokenBatchAttention> rows_;
};

// |a - b| / |b|; NaN if there is one.
double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (static_cast<double>(a.at(i)) - b[i]) * (static_cast<double>(a.at(i)) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / size);
}

void ExpectSameLogits(model::ModelConfig config, DType dtype, int64_t document) {
  config.dtype = dtype;
  const int64_t tokens = document + kQuery + kDecoded;
  Side device(config, Check(kernels::CreateCudaBackend(0)), tokens);
  if (dtype == DType::kF16) config.dtype = DType::kF32;  // the CPU does not compute in float16
  Side cpu(config, Check(kernels::CreateCpuBackend({.threads = 0, .force_isa = ""})), tokens);
  // Rounding to 16 bits may change the order of two keys' scores, and another key would be passed
  // on. So all keys are passed on, unless scores are exact.
  const bool exact_scores = dtype == DType::kF32;
  for (Prompt prompt : {Prompt{"full", ""}, Prompt{"star", ""}, Prompt{"apb", "random"},
                        Prompt{"apb", "query_aware", 0, !exact_scores},
                        Prompt{"apb", "retaining_heads", 0, !exact_scores}}) {
    prompt.document = document;
    const double error = RelativeError(device.Run(prompt), cpu.Run(prompt));
    EXPECT_LT(error, dtype == DType::kF32   ? 2e-5
                     : dtype == DType::kF16 ? 5e-3
                                            : 2e-2)
        << prompt.strategy << " " << prompt.compressor;
  }
}

class Engine : public testing::TestWithParam<std::tuple<int, DType>> {};

std::string TestName(const testing::TestParamInfo<std::tuple<int, DType>>& info) {
  return absl::StrCat(Families()[std::get<0>(info.param)].name,
                      std::get<1>(info.param) == DType::kF32   ? "_f32"
                      : std::get<1>(info.param) == DType::kF16 ? "_f16"
                                                               : "_bf16");
}

TEST_P(Engine, Small) {
  ExpectSameLogits(Families()[std::get<0>(GetParam())].config, std::get<1>(GetParam()), 150);
}

// Many tiles of every kernel; too much for the emulator.
TEST_P(Engine, Large) {
  model::ModelConfig config = Families()[std::get<0>(GetParam())].config;
  config.hidden_size = 1024;
  config.mlp_size = 2048;
  config.vocab_size = 4001;
  ExpectSameLogits(config, std::get<1>(GetParam()), 3001);
}

INSTANTIATE_TEST_SUITE_P(Families, Engine,
                         testing::Combine(testing::Range(0, 4),
                                          testing::Values(DType::kF32, DType::kBF16, DType::kF16)),
                         TestName);

}  // namespace
}  // namespace apb::context_parallel
